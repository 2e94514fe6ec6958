# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks on the inventory of the quickstart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Objectives that any machine meets, however busy it is.
RELAXED = {"edgeml_model_overrides": {name: {"slo": {"p95_ms": 60000}} for name in ("digits", "file_type")}}


def play(name: str, *arguments: str) -> str:
    command: list[str | Path] = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        ROOT / "inventories" / "quickstart",
        name,
        f"--extra-vars={json.dumps(RELAXED)}",
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    return done.stdout
