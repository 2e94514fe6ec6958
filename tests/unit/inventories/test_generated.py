# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An inventory that a program makes anew in a directory of its own, as AWX does, means what its sources mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "inventories" / "quickstart"
HOST = "this_machine"


def run(program: str, *arguments: object) -> str:
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def places(inventory: Path, *more: str) -> dict[str, Any]:
    playbook = Path(__file__).with_name("where_things_are.yml")
    output = run("ansible-playbook", "-i", inventory, playbook, "-e", f"shown={HOST}", *more)
    found: dict[str, Any] = json.loads(output)["plays"][0]["tasks"][-1]["hosts"][HOST]["msg"]
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script that ansible-runner writes of an inventory that AWX has imported."""
    imported = run("ansible-inventory", "-i", QUICKSTART, "--list", "--export")
    path = tmp_path / "inventory" / "hosts"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nprint({imported!r})\n")
    path.chmod(0o755)
    return path


def test_lock_and_certificates_do_not_follow_the_file_that_names_the_host(script: Path) -> None:
    found = places(QUICKSTART)
    assert found["lock"] == f"{ROOT}/inventories/quickstart.lock.yml"
    assert found["authority"] == f"{ROOT}/build/quickstart/pki/ca.crt"
    assert found["build"] == f"{ROOT}/build"
    assert places(script) == found


def test_an_inventory_without_the_plugin_says_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "hosts.yml"
    path.parent.mkdir()
    path.write_text(f"all: {{hosts: {{{HOST}: {{ansible_connection: local}}}}}}\n")
    assert places(path, "-e", f"edgeml_inventory_directory={QUICKSTART}") == places(QUICKSTART)
