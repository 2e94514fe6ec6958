# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook plan where not every host answers: this machine plays a host that does, and one that refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key

ROLES = Path(__file__).resolve().parents[3] / "roles"


def digest(sign: str) -> str:
    return "sha256:" + sign * 64


def inventory(directory: Path, port: int) -> Path:
    """Write an inventory of four devices and its lock; return its path."""
    platforms = {"amd64": {"digest": digest("a"), "size": 40_000_000}}
    variant = {
        "repository": "edgeml/models/digits",
        "digest": digest("c"),
        "index": digest("d"),
        "platforms": platforms,
        "blob": {"digest": digest("e"), "size": 10_000_000},
        "golden_cases": 3,
    }
    lock = {
        "serial": 1,
        "registry": "registry.edgeml.internal:5443",
        "images": {"runtime": {"repository": "edgeml/runtime", "digest": digest("b"), "platforms": platforms}},
        "models": {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant}}}},
    }
    (directory / "fleet.lock.yml").write_text(yaml.safe_dump(lock))
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "edgeml_site": "berlin",
        "edgeml_site_lan_mbit": 100,
        "edgeml_architecture": "amd64",
        "edgeml_lock_file": str(directory / "fleet.lock.yml"),
        "edgeml_catalogue": [
            {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "models/digits"}
        ],
        "edgeml_runtimes": [{"name": "runtime", "recipe": "image.yml"}],
        "edgeml_models": [{"name": "digits"}],
        "edgeml_signatures": "ignored",
        "inference_runtime_directory": str(directory / "root"),
    }
    for name in ("rest", "grpc", "metrics"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            variables[f"inference_runtime_{name}_port"] = free.getsockname()[1]
    hosts: dict[str, dict[str, Any]] = {
        "well": {},
        "away": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
        "taken": {"inference_runtime_rest_port": port},
        "unsigned": {"edgeml_signatures": "required", "edgeml_trusted_keys": [make_key().public]},
    }
    groups = {"devices": {"hosts": hosts}, "mirrors": {"hosts": {}}}
    path = directory / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"children": groups, "vars": variables}}))
    return path


def test_who_cannot_answer_hides_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            f"-i{inventory(tmp_path, port)}",
            "edgeml.fleet.plan",
            f"-eedgeml_plan_report={tmp_path / 'report'}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    report = json.loads((tmp_path / "report" / "plan.json").read_text())
    (site,) = report["sites"]
    hosts = {host["name"]: host for host in site["hosts"]}
    assert {name: host["state"] for name, host in hosts.items()} == {
        "well": "changed",
        "away": "unknown",
        "taken": "failed",
        "unsigned": "failed",
    }
    assert hosts["unsigned"]["reason"].startswith("The lock is not signed at the lock with serial 1.")
    assert hosts["taken"]["reason"].startswith(f"Port {port} is already taken at 127.0.0.1:{port}.")
    assert hosts["well"]["runtimes"][0]["action"] == "start"
    assert report["totals"]["bytes"] == {"uplink": 0, "lan": 50_000_000}
    assert report["totals"]["seconds"]["lan"] == 4.0
    assert "LAN 50.0 MB, about 4 s" in done.stdout
    assert "Hosts that cannot take their release: 2" in done.stdout + done.stderr
    assert done.stdout.count("UNREACHABLE!") == 1
    assert "Error while evaluating" not in done.stdout + done.stderr
    assert not (tmp_path / "root").exists()
