# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the collection as a release does, and install it as its users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GALAXY = str(Path(sys.executable).with_name("ansible-galaxy"))


def build(directory: Path) -> Path:
    """Return the collection's archive, made in `directory`."""
    command = [GALAXY, "collection", "build", "--force", "--output-path", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(directory.glob("edgeml-fleet-*.tar.gz"))


def install(directory: Path) -> Path:
    """Install the built collection below `directory`, where ANSIBLE_COLLECTIONS_PATH may point; return its root."""
    archive = build(directory)
    # --force: this environment knows the checkout under the same name.
    command = [GALAXY, "collection", "install", "--force", "--offline"]
    command += ["--collections-path", str(directory), str(archive)]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory / "ansible_collections" / "edgeml" / "fleet"
