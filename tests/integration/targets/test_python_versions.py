# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module that runs on targets, run by Ansible with the oldest and the newest Python of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key, sign_lock
from ansible_collections.edgeml.fleet.tests.support.target_python import (
    FLOOR,
    ROOT,
    TARGET_MODULES,
    interpreters,
    target_files,
)

FOUND = list(interpreters().items())
#: tests/architecture/test_target_python.py uses the shared code with those between as well.
INTERPRETERS = dict([FOUND[0], FOUND[-1]])
NOBODY = "127.0.0.1:9"


def test_target_code_needs_no_newer_python() -> None:
    """Vermin knows with which Python each feature of language and library came."""
    target = f"--target={FLOOR[0]}.{FLOOR[1]}-"
    command = [
        str(Path(sys.executable).parent / "vermin"),
        target,
        "--violations",
        "--no-tips",
        *map(str, target_files()),
    ]
    seen = subprocess.run(command, capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stdout


@pytest.mark.parametrize("version", INTERPRETERS)
def test_modules_run_with_each_python(version: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    check = {"check_mode": True, "ignore_errors": True}
    model = {"name": "digits", "version": "1.0.0"}
    lock: dict[str, Any] = {"serial": 1, "images": {}, "models": {}}
    keys = [make_key("p256"), make_key("ed25519")]
    trust = {"trusted_keys": [key.public for key in keys], "lock_signature": sign_lock(lock, keys), "signers_needed": 2}
    tasks: dict[str, dict[str, Any]] = {
        "engine_service": {},
        "file_set": {"path": str(tmp_path / "files"), "files": {"a": "b"}},
        "host_preflight": {"content": [], "refuse": False},
        "host_state": {"state": "recorded", "section": "a", "document": "b", "directory": str(tmp_path / "records"),
                       "evidence": [{"kind": "file", "path": "/etc/hostname"}]},
        "inference_health": {"endpoint": f"http://{NOBODY}", "models": [model]},
        "inference_latency": {"endpoint": f"http://{NOBODY}", "models": [model]},
        "kernel_settings": {"sysctls": {"kernel.ostype": "Linux"}},
        "mirror_sync": {"root": str(root), "store": {"address": NOBODY},
                        "lock": lock, "signatures": trust},
        "package_repository": {"bundle": str(tmp_path / "packages"), "path": str(root), "key": "none"},
        "package_source": {"state": "absent"},
        "runtime_release": {"state": "absent", "root": str(root)},
        "runtime_release_info": {"root": str(root)},
        "variant_measurement": {"image": "nothing", "root": str(root)},
        "service_container": {"name": "edgeml-test-none", "image": "nothing", "endpoint": f"http://{NOBODY}"},
    }  # fmt: skip
    assert sorted(tasks) == TARGET_MODULES
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [
            {f"edgeml.fleet.{name}": arguments, "name": name, **({} if name == "host_state" else check)}
            for name, arguments in tasks.items()
        ],
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", "localhost,", str(playbook)]
    command += ["--connection", "local", "--extra-vars", f"ansible_python_interpreter={INTERPRETERS[version]}"]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    results = {task["task"]["name"]: task["hosts"]["localhost"] for task in json.loads(run.stdout)["plays"][0]["tasks"]}
    for name in ("inference_health", "inference_latency"):  # nobody listens: the failure keeps its parts
        assert results[name]["failed"], results[name]
        assert results[name]["remedy"], results[name]
    for name in set(tasks) - {"inference_health", "inference_latency"}:
        assert not results[name].get("failed"), results[name]
    assert results["host_preflight"]["ansible_facts"]["edgeml_host"]["memory_mb"] > 0
    assert (tmp_path / "records" / "a.json").exists()
    assert results["mirror_sync"]["plan"]["action"] == "sync"
    assert results["runtime_release"]["plan"]["action"] == "none"
    assert results["runtime_release_info"]["runtimes"] == []
