# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Molecule, run as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "extensions" / "molecule"
#: The scenarios that `make test` runs; `make test-molecule` runs all.
QUICK = ("private_ca",)
STEPS = ("check", "converge", "idempotence", "verify")


def molecule_test(directory: Path, *arguments: str, steps: tuple[str, ...] = STEPS, **environment: str) -> None:
    """Run `molecule test` in a project, and require that each of `steps` has run."""
    programs = Path(sys.executable).parent
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        [programs / "molecule", "test", *arguments],
        cwd=directory,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "PY_COLORS": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-12000:]
    for step in steps:
        assert f"{step}: Executed: Successful" in done.stdout, f"{step} did not run\n{done.stdout[-4000:]}"


def run_scenario(name: str) -> None:
    """Run a scenario of this collection from nothing to nothing, with drift and cleanup where it has them."""
    own = tuple(step for step in ("side_effect", "cleanup") if (SCENARIOS / name / f"{step}.yml").exists())
    molecule_test(ROOT, "--scenario-name", name, steps=STEPS + own, EDGEML_AWX_PORT=str(free_port()))
