# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The releases of ansible-core that the collection is tried with: `python tests/support/cores.py` prints their table.

What README, docs/support-matrix.md, meta/runtime.yml and the roles say of them is compared with this by
tests/architecture.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.plugin_utils.ansible_core import FLOOR
from ansible_collections.edgeml.fleet.tests.support.target_python import interpreters

ROOT = Path(__file__).resolve().parents[2]
#: What the unit tests import besides Ansible.
TOOLS = (
    "bcrypt", "jsonschema", "referencing", "pytest", "pytest-timeout", "pytest-xdist", "trustme", "hypothesis",
    "grpcio", "protobuf", "onnx", "numpy", "prometheus-client", "hpack", "cyclonedx-python-lib",
    "ansible-runner",
)  # fmt: skip
#: They come with ansible-core, each release at a version of its own.
UNPINNED = ("ansible", "ansible-core", "resolvelib")


@dataclass(frozen=True)
class Core:
    """A release of ansible-core, and the Pythons that it runs with on a controller, the one that is tried first."""

    version: str
    pythons: tuple[str, ...]

    @property
    def minor(self) -> str:
        """Such as ``2.20``."""
        return self.version.rpartition(".")[0]

    @property
    def supported(self) -> bool:
        """Whether the collection runs with it."""
        return tuple(map(int, self.minor.split("."))) >= FLOOR


CORES = (
    Core("2.16.19", ("3.10", "3.11", "3.12")),
    Core("2.17.14", ("3.12", "3.10", "3.11")),
    Core("2.18.19", ("3.13", "3.11", "3.12")),
    Core("2.19.14", ("3.11", "3.12", "3.13")),
    Core("2.20.10", ("3.13", "3.12", "3.14")),
    Core("2.21.5", ("3.12", "3.13", "3.14")),
)


def table() -> str:
    """Return the table of docs/support-matrix.md."""
    lines = ["| ansible-core | Python of the controller | | Tried with |", "|---|---|---|---|"]
    for core in CORES:
        pythons = sorted(core.pythons, key=lambda version: int(version.partition(".")[2]))
        verdict = "runs" if core.supported else "refused in one line"
        tried = f"{core.version} on Python {core.pythons[0]}"
        lines.append(f"| {core.minor} | {pythons[0]} to {pythons[-1]} | {verdict} | {tried} |")
    return "\n".join(lines) + "\n"


def python_of(core: Core) -> Path:
    """Return an interpreter of this machine that runs `core`; raise LookupError if it has none."""
    found = interpreters()
    for version in core.pythons:
        if version in found:
            return found[version]
    raise LookupError(
        f"ansible-core {core.version} needs Python {', '.join(sorted(core.pythons))}; this machine has "
        f"{', '.join(found)}. Next: pyenv install {core.pythons[0]}"
    )


def environment(core: Core) -> Path:
    """Return the directory of a virtual environment with `core` and, if supported, what unit tests need; made once."""
    place = ROOT / "build" / "environments" / f"core-{core.version}"
    if not (place / "installed").exists():
        constraints = ROOT / "build" / "environments" / "core-constraints.txt"
        constraints.parent.mkdir(parents=True, exist_ok=True)
        constraints.write_text(_constraints())
        subprocess.run([python_of(core), "-m", "venv", "--clear", place], check=True)
        tools: list[str] = [f"--constraint={constraints}", *TOOLS] if core.supported else []
        options = ["--quiet", "--no-compile", "--disable-pip-version-check"]
        command: list[str | Path] = [place / "bin/pip", "install", *options, f"ansible-core=={core.version}", *tools]
        subprocess.run(command, check=True)
        (place / "installed").touch()
    (packages,) = place.glob("lib/python3.*/site-packages")
    link = packages / "ansible_collections" / "edgeml" / "fleet"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT)
    return place


def _constraints() -> str:
    """Return the versions of the tools that all other tests run with."""
    locked = "".join((ROOT / "requirements" / name).read_text() for name in ("development.txt", "runtime.txt"))
    lines = re.findall(r"^(\S+==.*?) *\\$", locked, re.MULTILINE)
    return "".join(f"{line}\n" for line in dict.fromkeys(lines) if line.partition("==")[0] not in UNPINNED)


if __name__ == "__main__":
    print(table(), end="")
