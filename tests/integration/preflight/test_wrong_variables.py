# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong values of the roles' variables: the playbook edgeml.fleet.preflight names each of them, and asks no host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

#: What each host says. One whose name begins with "mirror" is a mirror.
WRONG: dict[str, dict[str, Any]] = {
    "level": {"inference_runtime_log_level": "verbose"},
    "memory": {"inference_runtime_memory_mb": -4, "inference_runtime_base_memory_mb": "lots"},
    "relative": {"inference_runtime_directory": "data/x"},
    "no_directory": {"inference_runtime_directory": None},
    "port_zero": {"inference_runtime_rest_port": 0},
    "port_beyond": {"inference_runtime_rest_port": 70000},
    "port_text": {"inference_runtime_rest_port": "http"},
    "no_port": {"inference_runtime_grpc_port": None},
    "seconds": {"inference_runtime_start_timeout": "2m", "inference_runtime_drain_seconds": "10s"},
    "bool": {"edgeml_accept_older_lock": "nope"},
    "samples": {"inference_runtime_verify_samples": "many"},
    "finding": {"edgeml_preflight_ignore": ["certificat"]},
    "no_findings": {"edgeml_preflight_ignore": None},
    "empty_tls": {"inference_runtime_tls_certificate_file": None, "inference_runtime_mqtt": None},
    "access": {"inference_runtime_access": [{"tokn": "S3CRETxyz", "models": ["a"]}]},
    "access_text": {"inference_runtime_access": "S3CRETxyz"},
    "broker": {"inference_runtime_mqtt": {"host": "mqtt://u:S3CRETxyz@10.0.0.1"}},
    "broker_text": {"inference_runtime_mqtt": "S3CRETxyz"},
    "mistyped": {"edgeml_model_override": {}, "site_mirror_listen_adress": "127.0.0.1"},
    "mirror_mistyped": {"edgeml_mirror_ip_adress": "127.0.0.1"},
    "engine": {"docker_engine_configuration": "x"},
    "mirror_port": {"site_mirror_port": "abc"},
    "mirror_port_beyond": {"site_mirror_port": 99999},
    "mirror_registry": {"site_mirror_registry": None},
    "mirror_architectures": {"edgeml_architectures": []},
    "mirror_architecture": {"edgeml_architectures": ["x86_64"]},
    "mirror_engine": {"docker_engine_configuration": "x"},
    "mirror_uncertified": {"site_mirror_bundle": ""},
}


def _run(directory: Path) -> tuple[str, list[dict[str, str]]]:
    inventory = directory / "p"
    inventory.mkdir()
    mirrors = {name: values for name, values in WRONG.items() if name.startswith("mirror")}
    devices = {name: values for name, values in WRONG.items() if name not in mirrors}
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "edgeml_signatures": "ignored",
        "edgeml_architecture": "amd64",
        "edgeml_models": [{"name": "digits"}],
        "edgeml_lock_file": str(directory / "p.lock.yml"),
        # What a role's own defaults make of a variable is not known here.
        "edgeml_state_directory": "{{ edgeml_build_directory }}/state",
        "edgeml_store_password": "none",
        "inference_runtime_directory": str(directory / "data"),
        "site_mirror_directory": str(directory / "mirror"),
        "site_mirror_bundle": str(directory / "bundle"),
        "docker_engine_configuration": {},
    }
    hosts = {"all": {"children": {"mirrors": {"hosts": mirrors}, "devices": {"hosts": devices}}, "vars": variables}}
    lock = {"serial": 1, "registry": "registry.example:5443", "images": {}, "models": {}}
    (directory / "p.lock.yml").write_text(yaml.safe_dump(lock))
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    program = Path(sys.executable).with_name("ansible-playbook")
    report = directory / "report.json"
    done = subprocess.run(
        [program, "-i", inventory, "edgeml.fleet.preflight", "-e", f"edgeml_preflight_report={report}"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    return done.stdout + done.stderr, json.loads(report.read_text())["findings"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    return _run(tmp_path_factory.mktemp("preflight"))


@pytest.mark.parametrize("host", WRONG)
def test_each_wrong_variable_is_named(run: tuple[str, list[dict[str, str]]], host: str) -> None:
    found = [entry for entry in run[1] if entry["host"] == host]
    refused = [entry for entry in found if entry["severity"] == "refuse"]
    assert all(entry["name"] in ("inventory", "certificate", "name_resolution") for entry in refused), refused
    if host == "mirror_uncertified":
        assert any("edgeml.fleet.certificates" in entry["remedy"] for entry in refused), found
        return
    for name in WRONG[host]:
        assert any(
            name in entry["value"] and ("mistyped" in host or "Seen: " in entry["value"]) for entry in refused
        ), found
    assert not any("of type" in entry["value"] or "argument " in entry["value"] for entry in found), found


def test_no_secret_and_no_repr_is_shown(run: tuple[str, list[dict[str, str]]]) -> None:
    text = run[0] + json.dumps(run[1])
    assert "S3CRET" not in text
    assert "CapturedErrorSummary" not in text
