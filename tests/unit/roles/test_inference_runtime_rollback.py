# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which runtimes of a host go back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PYTHON = {"ansible_python_interpreter": sys.executable}
TASKS = Path(__file__).parents[3] / "roles" / "inference_runtime" / "tasks" / "rollback.yml"


def play(directory: Path, tasks: list[dict[str, Any]], variables: dict[str, Any]) -> tuple[int, str]:
    text = yaml.safe_dump(
        [{"hosts": "localhost", "gather_facts": False, "vars": {**variables, **PYTHON}, "tasks": tasks}]
    )
    (directory / "play.yml").write_text(text)
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "localhost,", "-c", "local", "play.yml"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_runtime_that_no_host_has_is_refused(tmp_path: Path) -> None:
    role = {"name": "edgeml.fleet.inference_runtime", "tasks_from": "rollback", "rolespec_validate": False}
    variables = {"inference_runtime_directory": str(tmp_path / "edgeml"), "edgeml_runtime": "visoin"}
    code, output = play(tmp_path, [{"ansible.builtin.import_role": role}], variables)
    assert code != 0
    assert "No host has a runtime of this name, at edgeml_runtime. Seen: visoin." in " ".join(output.split())


def runtime(name: str, previous: bool, *releases: str) -> dict[str, Any]:
    history = [{"release": release * 10, "outcome": "active"} for release in releases]
    return {"name": name, "previous": {"id": "x"} if previous else None, "history": history}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, ["audio"]),
        ({"edgeml_runtime": "vision"}, ["vision"]),
        ({"edgeml_release": "b" * 8}, ["vision"]),
        ({"edgeml_release": "a" * 8}, ["audio", "vision"]),
        ({"edgeml_release": "f" * 8}, ["audio"]),  # the module says which ones the host keeps
    ],
)
def test_runtimes_that_go_back(tmp_path: Path, named: dict[str, str], expected: list[str]) -> None:
    (task,) = (task for task in yaml.safe_load(TASKS.read_text()) if "loop" in task)
    kept = [runtime("audio", True, "a", "c"), runtime("vision", False, "a", "b"), runtime("idle", False)]
    variables = {**task["vars"], "__inference_runtime_kept": {"runtimes": kept}, **named}
    shown = {
        "ansible.builtin.copy": {
            "dest": str(tmp_path / "out"),
            "content": "{{ __inference_runtime_to_roll_back | to_json }}",
        }
    }
    code, output = play(tmp_path, [shown], variables)
    assert code == 0, output
    assert json.loads((tmp_path / "out").read_text()) == expected
