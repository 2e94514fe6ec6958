# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs in AWX's layout: a private data directory, a generated inventory script, answers of surveys, slices, a worker.

A job that converges a host is in tests/fleet/test_operations.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    programs,
    store,
)
from ansible_collections.edgeml.fleet.tests.integration.publish.conftest import Project
from ansible_collections.edgeml.fleet.tests.support.awx_job import imported_inventory, run_job, write_job
from ansible_collections.edgeml.fleet.tests.support.content import Authority, Store, take_built_layers

ROOT = Path(__file__).resolve().parents[2]
DEVICES = [f"device-{number}" for number in range(1, 5)]
PLACEMENT = {
    "plugin": "edgeml.fleet.placement",
    "runtimes": [
        {"name": "runtime", "recipe": "edgeml.fleet:runtime/image/image.yml", "source_root": "edgeml.fleet:"}
    ],
    "catalogue": [
        {"name": "photo", "version": "1.0.0", "platform": "python", "source": "edgeml.fleet:models/photo"}
    ],
    "placement": [{"models": ["photo"], "hosts": "devices"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(store: Store, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Project:  # noqa: F811
    """A repository as docs/awx.md describes it, published: what AWX checks out."""
    root = tmp_path_factory.mktemp("repository")
    (root / "playbooks").mkdir()
    for name in ("plan", "rollout"):
        play = [{"name": name.capitalize(), "ansible.builtin.import_playbook": f"edgeml.fleet.{name}"}]
        (root / f"playbooks/{name}.yml").write_text(yaml.safe_dump(play))
    inventory = root / "inventory"
    inventory.mkdir()
    groups: dict[str, Any] = {"stores": ["server"], "mirrors": ["server"], "devices": DEVICES}
    groups["controllers"] = ["controller"]
    children: dict[str, Any] = {name: {"hosts": {host: {} for host in hosts}} for name, hosts in groups.items()}
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    variables |= {
        "edgeml_architectures": ["amd64"],
        "edgeml_architecture": "amd64",
        "edgeml_lock_file": str(root / "inventory.lock.yml"),
    }
    (inventory / "10-hosts.yml").write_text(yaml.safe_dump({"all": {"children": children, "vars": variables}}))
    (inventory / "20-placement.yml").write_text(yaml.safe_dump(PLACEMENT))
    made = Project(root, store, store)
    take_built_layers(root / "build/images")
    published = made.publish(edgeml_architectures=["amd64"])
    assert published.code == 0, published.output
    # What a job needs comes from the inventory and from credentials: nothing of the publication's directory is there.
    (root / "build/inventory").rename(root / "elsewhere")
    variables |= {
        "edgeml_trusted_keys": [(root / "elsewhere/signing.key.pub").read_text()],
        "edgeml_ca_certificate_file": str(authority.ca_file),
        "edgeml_tls_certificate_file": str(authority.certificate),
        "edgeml_tls_key_file": str(authority.key),
        "edgeml_store": store.address,
        "edgeml_store_ip_address": "127.0.0.1",
        "edgeml_store_username": store.username,
        "edgeml_store_password": store.password,
    }
    (inventory / "10-hosts.yml").write_text(yaml.safe_dump({"all": {"children": children, "vars": variables}}))
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED", "true")
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    yield


def imported(project: Project, directory: Path) -> dict[str, Any]:
    return imported_inventory(project.root / "inventory", directory)


def job(directory: Path, project: Project, inventory: dict[str, Any], hosts: set[str], variables: str) -> Path:
    """Write the directory of a job for some of the devices."""
    return write_job(directory, project.root, inventory, variables, left_out=set(DEVICES) - hosts)


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_slices_plan_each_device_once(slices: int, project: Project, tmp_path: Path) -> None:
    inventory = imported(project, tmp_path / "update")
    planned: list[str] = []
    for number in range(slices):
        hosts = set(DEVICES[number::slices])
        report = tmp_path / f"report-{number}"
        report.mkdir()
        answers = json.dumps({"edgeml_devices": "devices", "edgeml_plan_report": str(report)})
        done = run_job(job(tmp_path / f"job-{number}", project, inventory, hosts, answers), "plan")
        text = done.stdout.read()
        assert done.status == "successful", text[-6000:]
        for site in json.loads((report / "plan.json").read_text())["sites"]:
            planned += [host["name"] for host in site["hosts"] if host["name"] in DEVICES]
    assert sorted(planned) == DEVICES


def survey_answers(**answers: Any) -> str:
    """The extra variables of a job of the template `rollout`: answers are marked as no templates, as AWX does."""
    data = DataLoader().load_from_file(str(ROOT / "roles/awx_setup/vars/main.yml"))
    template = next(item for item in data["__awx_setup_job_templates"] if item["playbook"] == "rollout")
    given = {question["variable"]: question["default"] for question in template["survey"] if isinstance(question, dict)}
    marked = "".join(f"{name}: !unsafe {json.dumps(value)}\n" for name, value in {**given, **answers}.items())
    return f"edgeml_rollout: {json.dumps(template['extra_vars']['edgeml_rollout'])}\n{marked}"


@pytest.mark.parametrize(("first", "refused"), [("10%", ""), ("two", "edgeml_rollout")])
def test_answers_of_the_survey_reach_the_rollout(first: str, refused: str, project: Project, tmp_path: Path) -> None:
    """A check of the settings, in a slice without devices to change."""
    inventory = imported(project, tmp_path / "update")
    answers = survey_answers(awx_rollout_first=first) + "edgeml_devices: device-1\n"
    directory = job(tmp_path / "job", project, inventory, {"device-1"}, answers)
    (directory / "env" / "cmdline").write_text("--check")
    text = run_job(directory, "rollout").stdout.read()
    if refused:
        assert "first" in text and "two" in text, text[-4000:]
    else:
        assert "edgeml_rollout.first" not in text, text[-4000:]
        assert "device-1" in text


def test_a_job_runs_on_a_worker_elsewhere(project: Project, tmp_path: Path) -> None:
    """`ansible-runner transmit | worker | process`, which is how AWX reaches an execution node near a site."""
    inventory = imported(project, tmp_path / "update")
    sent = job(tmp_path / "sent", project, inventory, {"device-2"}, json.dumps({"edgeml_devices": "devices"}))
    (tmp_path / "there").mkdir()
    with (tmp_path / "stream").open("wb") as stream:
        ansible_runner.run(
            streamer="transmit", _output=stream, private_data_dir=str(sent), playbook="playbooks/plan.yml", quiet=True,
        )  # fmt: skip
    with (tmp_path / "stream").open("rb") as stream, (tmp_path / "answer").open("wb") as answer:
        there = str(tmp_path / "there")
        ansible_runner.run(streamer="worker", _input=stream, _output=answer, private_data_dir=there, quiet=True)
    with (tmp_path / "answer").open("rb") as answer:
        back = str(tmp_path / "back")
        done = ansible_runner.run(streamer="process", _input=answer, private_data_dir=back, quiet=True)
    events = [path.read_text() for path in (tmp_path / "back").rglob("job_events/*.json")]
    wrong = [event for event in events if '"runner_on_failed"' in event or '"runner_on_unreachable"' in event]
    assert done.status == "successful", "\n".join(event[:4000] for event in wrong or events)
    assert any("device-2" in event for event in events)
