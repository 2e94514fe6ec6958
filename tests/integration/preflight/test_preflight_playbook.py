# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook edgeml.fleet.preflight against real faults: each "host" is this machine with one of them."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from ansible_collections.edgeml.fleet.tests.lab.machine import run
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, start

ROOT = Path(__file__).resolve().parents[3]
IMAGE, MODEL, NEWER = ("sha256:" + letter * 64 for letter in "abc")

OLD_PYTHON = """#!/bin/sh
exec {python} -c '
import sys
sys.version_info, sys.version = (3, 7, 2, "final", 0), "3.7.2 (default)"
exec(compile(sys.stdin.read(), "module", "exec"))'
"""

#: What Python 3.7 says to Ansible's modules.
ANCIENT_PYTHON = """#!/bin/sh
echo 'SyntaxError: invalid syntax' >&2
exit 1
"""


def lock(registry: str, model: str, golden_cases: int = 1) -> dict[str, Any]:
    variant = {
        "repository": "edgeml/models/digits",
        "digest": "sha256:" + "d" * 64,
        "index": "sha256:" + "e" * 64,
        "platforms": {},
        "blob": {"digest": model, "size": 1 << 20},
        "golden_cases": golden_cases,
    }
    platform = {"digest": IMAGE, "size": 1 << 20}
    return {
        "serial": 1,
        "registry": registry,
        "images": {
            "runtime": {
                "repository": "edgeml/runtime",
                "digest": "sha256:" + "f" * 64,
                "platforms": {"amd64": platform, "arm64": platform},
            }
        },
        "models": {"digits": {"1.0.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant}}}},
    }


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of eight MiB on a loop device."""
    directory = tmp_path_factory.mktemp("disk")
    mount = directory / "mount"
    mount.mkdir()
    run(["truncate", "--size", "8M", directory / "image"])
    run(["mkfs.ext4", "-q", directory / "image"])
    run(["mount", "-o", "loop", directory / "image", mount], root=True)
    yield mount
    run(["umount", mount], root=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, full_disk: Path) -> Iterator[dict[str, Any]]:
    """Run the playbook once over a host for each fault; return its exit code, output and report."""
    directory = tmp_path_factory.mktemp("preflight")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("device", not_before=yesterday - timedelta(days=9), not_after=yesterday)
    expired.cert_chain_pems[0].write_to_path(str(directory / "expired.crt"))
    expired.private_key_pem.write_to_path(str(directory / "expired.key"))
    other = authority.issue_cert("this-machine")
    other.cert_chain_pems[0].write_to_path(str(directory / "other.crt"))
    other.private_key_pem.write_to_path(str(directory / "other.key"))

    def has_all_but_the_newest(request: Request) -> Answer:
        return Answer(404 if NEWER in request.path else 200)

    server, stop = start(context, str(directory / "ca.crt"), has_all_but_the_newest)
    registry = server.address.replace("127.0.0.1", "localhost")
    old_python = directory / "python3.7"
    old_python.write_text(OLD_PYTHON.format(python=sys.executable))
    old_python.chmod(0o755)
    ancient_python = directory / "python3.6"
    ancient_python.write_text(ANCIENT_PYTHON)
    ancient_python.chmod(0o755)
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    closed_port, rest_port, grpc_port, metrics_port = [listener.getsockname()[1] for listener in free]
    for listener in free:
        listener.close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hosts: dict[str, dict[str, Any]] = {
            "sound": {},
            "full_disk": {"inference_runtime_directory": str(full_disk / "edgeml")},
            "taken_port": {"inference_runtime_grpc_port": taken.getsockname()[1]},
            "expired": {
                "inference_runtime_tls_certificate_file": str(directory / "expired.crt"),
                "inference_runtime_tls_key_file": str(directory / "expired.key"),
                "inference_runtime_server_name": "device",
                "inference_runtime_bearer_token": "sesame",
            },
            "other_name": {
                "inference_runtime_tls_certificate_file": str(directory / "other.crt"),
                "inference_runtime_tls_key_file": str(directory / "other.key"),
                "inference_runtime_bearer_token": "sesame",
            },
            "this_machine": {
                "inference_runtime_tls_certificate_file": str(directory / "other.crt"),
                "inference_runtime_tls_key_file": str(directory / "other.key"),
                "inference_runtime_bearer_token": "sesame",
            },
            "unknown_option": {"inference_runtime_mqtt": {"host": "localhost", "certificate": "broker.crt"}},
            "unknown_variable": {"inference_runtime_mqqt": {}},
            "stale_mirror": {"inference_runtime_lock": lock(registry, NEWER)},
            "no_mirror": {"inference_runtime_lock": lock(f"localhost:{closed_port}", MODEL)},
            "no_name": {
                "inference_runtime_lock": lock("registry.invalid:5443", MODEL),
                "inference_runtime_mirror_ip_address": "",
            },
            "no_python": {"ansible_python_interpreter": "/nowhere/python3"},
            "old_python": {"ansible_python_interpreter": str(old_python)},
            "ancient_python": {"ansible_python_interpreter": str(ancient_python)},
            "gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": closed_port},
            "misspelt": {"edgeml_models": [{"name": "digit"}]},
            "in_clear": {"inference_runtime_listen_address": "0.0.0.0"},  # noqa: S104
            "unpublished": {"inference_runtime_lock": "{{ '/nowhere.lock.yml' | edgeml.fleet.published_lock }}"},
            "undefined": {"inference_runtime_lock": "{{ nobody_knows }}"},
            "unsigned": {"edgeml_signatures": "required", "edgeml_trusted_keys": [make_key().public]},
            "no_device": {"edgeml_model_overrides": {"digits": {"requires": {"devices": ["/dev/edgeml-none"]}}}},
            "unchecked": {"inference_runtime_lock": lock(registry, MODEL, golden_cases=0)},
            "waived": {
                "edgeml_model_overrides": {"digits": {"requires": {"devices": ["/dev/edgeml-none"]}}},
                "edgeml_preflight_ignore": ["device"],
            },
        }
        inventory = {
            "all": {
                "children": {"mirrors": {}, "devices": {"hosts": hosts}},
                "vars": {
                    "ansible_connection": "local",
                    "ansible_become": False,
                    "ansible_python_interpreter": sys.executable,
                    "edgeml_catalogue": [
                        {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "digits"}
                    ],
                    "edgeml_models": [{"name": "digits"}],
                    "edgeml_signatures": "ignored",
                    "edgeml_ca_certificate_file": str(directory / "ca.crt"),
                    "inference_runtime_lock": lock(registry, MODEL),
                    "inference_runtime_mirror_ip_address": "127.0.0.1",
                    "inference_runtime_directory": str(directory / "edgeml"),
                    "inference_runtime_rest_port": rest_port,
                    "inference_runtime_grpc_port": grpc_port,
                    "inference_runtime_metrics_port": metrics_port,
                    "docker_engine_packages": [],
                },
            }
        }
        (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
        arguments = ["-i", str(directory / "hosts.yml"), "--check", "edgeml.fleet.preflight"]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), *arguments,
             "-e", f"edgeml_preflight_report={directory}/report.json"],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "ANSIBLE_STRATEGY": "free"},
        )  # fmt: skip
    stop()
    text = (directory / "report.json").read_text() if (directory / "report.json").exists() else "{}"
    yield {"code": done.returncode, "output": done.stdout + done.stderr, **json.loads(text)}


def refusals(report: dict[str, Any], host: str) -> list[str]:
    return [f["name"] for f in report["findings"] if (f["host"], f["severity"]) == (host, "refuse")]


@pytest.mark.parametrize(
    ("host", "names", "words"),
    [
        ("sound", [], ""),
        ("full_disk", ["disk_space"], "free at"),
        ("taken_port", ["port"], "is held by"),
        ("expired", ["certificate"], "expired.crt"),
        ("other_name", ["inventory"], "Seen: DNS:this-machine"),
        ("this_machine", [], ""),
        ("unknown_option", ["inventory"], "inference_runtime_mqtt.certificate"),
        ("unknown_variable", ["inventory"], "inference_runtime_mqqt"),
        ("stale_mirror", ["content"], "lacks model digits 1.0.0"),
        ("no_mirror", ["registry"], "Connection refused"),
        ("no_name", ["name_resolution"], "registry.invalid"),
        ("no_python", ["python"], "/nowhere/python3"),
        ("old_python", ["python"], "3.7.2"),
        ("ancient_python", ["python"], "too old for Ansible"),
        ("gone", [], "port"),
        ("misspelt", ["inventory"], "Model digit is not in the catalogue"),
        ("in_clear", ["inventory"], "in clear or without a check of its clients"),
        ("undefined", ["inventory"], "nobody_knows"),
        ("unpublished", ["inventory"], "Nothing has been published at /nowhere.lock.yml"),
        ("unsigned", ["signature"], "The lock is not signed"),
        ("no_device", ["device"], "/dev/edgeml-none"),
        ("unchecked", [], "Nothing checks the answers of digits 1.0.0"),
        ("waived", [], ""),
    ],
)
def test_each_fault_has_its_line(report: dict[str, Any], host: str, names: list[str], words: str) -> None:
    findings = [entry for entry in report["findings"] if entry["host"] == host]
    assert refusals(report, host) == names, findings
    assert not words or any(words in entry["value"] for entry in findings), findings
    assert all(entry["need"] and entry["remedy"] for entry in findings)


def test_hosts_that_run_what_nobody_signed_are_named(report: dict[str, Any]) -> None:
    named = {
        entry["host"] for entry in report["findings"] if (entry["name"], entry["severity"]) == ("unsigned", "warn")
    }
    assert {"sound", "gone", "no_python"} <= named
    assert "unsigned" not in named


def test_models_whose_answers_nothing_checks_are_named(report: dict[str, Any]) -> None:
    """In the table that preflight, plan, site and rollout show."""
    found = [entry for entry in report["findings"] if entry["name"] == "unchecked"]
    assert [(entry["host"], entry["severity"]) for entry in found] == [("unchecked", "warn")]
    assert "golden cases" in found[0]["need"]
    assert found[0]["value"] in report["output"]


def test_one_table_for_all_and_a_refusal(report: dict[str, Any]) -> None:
    assert report["code"] != 0
    lines = report["output"].splitlines()
    head = next(index for index, line in enumerate(lines) if line.split()[:2] == ["host", "finding"])
    table = lines[head + 1 : head + 1 + len(report["findings"])]
    assert [line.split()[:3] for line in table] == [[f["host"], f["severity"], f["name"]] for f in report["findings"]]
    assert f"{len(report['refused'])} of {report['hosts']} hosts are refused" in report["output"]
    assert {"sound", "waived"} & set(report["refused"]) == set()
    recap = [line.split() for line in report["output"].splitlines() if "unreachable=" in line]
    assert {host for host, *counts in recap if "failed=1" in counts} == set(report["refused"])


def test_nothing_changed(report: dict[str, Any]) -> None:
    recap = [line for line in report["output"].splitlines() if "unreachable=" in line]
    assert len(recap) == report["hosts"]
    assert all("changed=0" in line for line in recap)
