# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook report on hosts that answer and hosts that do not: this machine plays devices and mirrors."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import certificate, one_model_lock


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Write an inventory of three devices and two mirrors, with what a run of other commands would have left."""
    directory = tmp_path / "plant"
    directory.mkdir()
    (tmp_path / "plant.lock.yml").write_text(
        yaml.safe_dump(one_model_lock("registry.edgeml.internal:5443", 40_000_000, 10_000_000))
    )
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9, hours=1)
    for name, end in (("ca", datetime(2059, 12, 31, tzinfo=UTC)), ("server", soon)):
        (tmp_path / f"{name}.crt").write_text(certificate(end))
        (tmp_path / f"{name}.key").write_text("not read")
    old = {"time": "2026-01-02T03:04:05Z", "host": "away", "site": "berlin", "runtime": "runtime", "release": "r" * 64,
           "outcome": "active", "reason": "", "by": "controller", "serial": 3, "rollout": "",
           "models": [{"name": "digits", "version": "0.9.0", "variant": "default",
                       "digest": "sha256:" + "0" * 64}]}  # fmt: skip
    (tmp_path / "plant.ledger.jsonl").write_text(json.dumps(old) + "\n")
    generations = tmp_path / "mirror" / "generations"
    (generations / "3").mkdir(parents=True)
    (tmp_path / "mirror" / "current").symlink_to(generations / "3")
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "edgeml_site": "berlin",
        "edgeml_architecture": "amd64",
        "edgeml_catalogue": [
            {"name": "digits", "version": "1.0.0", "platform": "onnxruntime_onnx", "source": "models/digits",
             "slo": {"p95_ms": 5}}
        ],
        "edgeml_runtimes": [{"name": "runtime", "recipe": "image.yml"}],
        "edgeml_models": [{"name": "digits"}],
        "edgeml_ca_certificate_file": str(tmp_path / "ca.crt"),
        "edgeml_store_password": "none",
        "inference_runtime_directory": str(tmp_path / "root"),
        "inference_runtime_configuration_directory": str(tmp_path / "configuration"),
        "site_mirror_tls_certificate_file": str(tmp_path / "server.crt"),
        "site_mirror_tls_key_file": str(tmp_path / "server.key"),
        "site_mirror_directory": str(tmp_path / "mirror"),
        "site_mirror_configuration_directory": str(tmp_path / "mirror-configuration"),
    }  # fmt: skip
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts: dict[str, dict[str, Any]] = {
        "new": {},
        "away": nowhere,
        "wrong": {"edgeml_site": "lyon", "edgeml_models": [{"name": "no_such_model"}]},
    }
    groups = {
        "devices": {"hosts": hosts},
        "mirrors": {"hosts": {"old-mirror": {}, "lost-mirror": {**nowhere, "edgeml_site": "lyon"}}},
    }
    path = directory / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"children": groups, "vars": variables}}))
    return directory


def run(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [program, f"-i{inventory}", "edgeml.fleet.report", *arguments], capture_output=True, text=True
    )


def test_who_cannot_answer_hides_nobody(inventory: Path, tmp_path: Path) -> None:
    target = tmp_path / "build" / "report"
    done = run(inventory, f"-eedgeml_report={target}")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"report.html", "report.json", "report.prom", "targets.json", "alerts.yml", "dashboard.json"}
    assert {path.name for path in target.iterdir()} == names
    report = json.loads((target / "report.json").read_text())
    assert (report["fleet"], report["serial"]) == ("plant", 4)
    hosts = {host["name"]: host for host in report["hosts"]}
    assert {name: hosts[name]["state"] for name in ("away", "wrong")} == {"away": "unreachable", "wrong": "failed"}
    # Another test may have converged this machine, whose record is found then.
    assert hosts["new"]["state"] in ("pending", "drifted")
    assert hosts["new"]["runtimes"] == []
    assert "refused" in hosts["away"]["reason"]
    assert hosts["away"]["runtimes"][0]["models"][0]["version"] == "0.9.0"
    assert "no_such_model" in hosts["wrong"]["reason"]
    mirrors = {mirror["host"]: mirror for site in report["sites"] for mirror in site["mirrors"]}
    assert (mirrors["old-mirror"]["serial"], mirrors["old-mirror"]["state"]) == (3, "behind")
    assert mirrors["lost-mirror"]["state"] == "unreachable"
    assert "server certificate ends in 9 days" in str(mirrors["old-mirror"]["problems"])
    assert "Fleet plant, lock serial 4: 0 of 3 hosts are what the inventory says" in done.stdout
    assert "unreachable: away" in done.stdout
    assert not (tmp_path / "root").exists()


def test_report_without_a_lock_says_so(inventory: Path) -> None:
    inventory.with_name("plant.lock.yml").unlink()
    done = run(inventory, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The inventory does not say what runs here" in done.stdout
    assert "edgeml.fleet.publish" in done.stdout


def test_report_of_a_limit_covers_those_hosts(inventory: Path) -> None:
    done = run(inventory, "--limit", "new")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 1 hosts are what the inventory says" in done.stdout
    assert "wrong" not in done.stdout
