# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role inference_runtime says of a host that is lost while its release changes: nothing listens there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port

RELEASE = {"name": "edgeml.fleet.inference_runtime", "tasks_from": "release", "rolespec_validate": False}
PLAYBOOK: list[dict[str, Any]] = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "block": [{"import_role": RELEASE}, {"command": "true", "name": "go on"}],
                "rescue": [{"debug": {"msg": "rescued {{ inventory_hostname }}: {{ ansible_failed_result.msg }}"}}],
            },
        ],
    },
    {"hosts": "all", "gather_facts": False, "tasks": [{"debug": {"msg": "summed up"}}]},
]


def test_a_play_that_loses_all_its_hosts_goes_on(tmp_path: Path) -> None:
    host = {"ansible_host": "127.0.0.1", "ansible_port": free_port(), "ansible_connection": "ssh"}
    variables = {
        "inference_runtime_directory": "/nowhere",
        "inference_runtime_lock": {"registry": "registry.invalid"},
        "inference_runtime_signatures": {"mode": "ignored"},
        "__inference_runtime_releases": [],
        "__inference_runtime_configuration": {},
        "__inference_runtime_secret_digests": {},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"one": host, "two": host}}}))
    (tmp_path / "variables.yml").write_text(yaml.safe_dump(variables))
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAYBOOK))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-ihosts.yml", "play.yml", "-e@variables.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    words = " ".join(done.stdout.split())
    assert "rescued one: The host was lost while its release changed" in words, done.stdout + done.stderr
    assert "rescued two: The host was lost" in words
    assert "Connection refused" in words
    assert "go on" not in words
    assert words.count("summed up") == 2
    assert done.returncode == 0
