# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible's modules write to a device's log: everybody who reads it would know the runtimes' environment."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.installed import ROOT

TASKS = ROOT / "roles/inference_runtime/tasks"
DIGEST = "sha256:" + "a" * 64
#: Stands for the device's log; systemd's journal is none of the standard library's.
LOG = """\
import sys, syslog
sys.modules["systemd"] = None
def write(priority, message):
    with open({log!r}, "a") as file:
        file.write(message + "\\n")
syslog.syslog = write
"""


def tasks_with_environment() -> dict[str, dict[str, Any]]:
    """Return the variables of the tasks that give a runtime's environment to a module, by the module's name."""
    found = {}
    for path in sorted(TASKS.glob("*.yml")):
        for task in yaml.safe_load(path.read_text()):
            for key, value in task.items():
                if isinstance(value, dict) and "environment" in value:
                    found[key] = task.get("vars", {})
    return found


@pytest.mark.parametrize("module", tasks_with_environment())
@pytest.mark.parametrize("as_in_the_role", [True, False])
def test_the_environment_of_a_runtime_stands_in_no_log(tmp_path: Path, module: str, as_in_the_role: bool) -> None:
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(LOG.format(log=str(log)))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    options = {
        "root": str(tmp_path / "root"),
        "image": f"registry.example:5443/edgeml/runtime@{DIGEST}",
        "models": [],
        "signatures": {"mode": "ignored"},
        "environment": {"TOKEN": "s3cret", "THREADS": "a"},
    }
    one = {module: options, "register": "told", "check_mode": True, "ignore_errors": True}
    shown = {"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": str(tmp_path / "told.json")}}
    variables = tasks_with_environment()[module] if as_in_the_role else {}
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{**one, "vars": variables}, shown]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    host = {"ansible_connection": "local", "ansible_python_interpreter": str(python)}
    inventory = {"all": {"hosts": {"localhost": host}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [program, "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
    environment = {**os.environ, "ANSIBLE_REMOTE_TMP": str(tmp_path / "remote"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    told = json.loads((tmp_path / "told.json").read_text())
    assert "Invoked with" in log.read_text(), "the log is seen"
    assert ("s3cret" in log.read_text()) is not as_in_the_role
    assert "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" not in json.dumps(told)
    assert not told["failed"]
    assert module != "edgeml.fleet.runtime_release" or DIGEST in json.dumps(told), "what is told is whole"
