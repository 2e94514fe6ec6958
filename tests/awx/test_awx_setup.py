# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook edgeml.fleet.awx_setup, with the real modules of awx.awx, against the API of AWX as api.yml has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .server import Awx, running

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token of this test"
SECRETS = {
    "password": "pass-of-the-store",
    "key": "-----BEGIN PRIVATE KEY-----",
    "hook": "https://hook.example.com/abc",
}
VARIABLES = {
    "awx_setup_project_url": "https://git.example.com/edge/fleet.git",
    "awx_setup_execution_environment": "images.example.com/edge/fleet-ee:0.1.0",
    "awx_setup_slices": 4,
    "awx_setup_notification_type": "slack",
    "awx_setup_notification_configuration": {"token": SECRETS["hook"], "channels": ["edge"]},
    "awx_setup_credentials": [
        {"name": "store", "type": "store login", "inputs": {"username": "edgeml", "password": SECRETS["password"]}},
        {"name": "signing", "type": "signing key", "inputs": {"key": SECRETS["key"]}},
        {"name": "vault", "type": "Vault", "inputs": {"vault_password": "of the vault"}},
    ],
}


def run(address: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "edgeml.fleet.awx_setup"]
    command += ["--extra-vars", json.dumps({**VARIABLES, **variables}), *options]
    environment = {**os.environ, "CONTROLLER_HOST": address, "CONTROLLER_OAUTH_TOKEN": TOKEN, "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_PYTHON_INTERPRETER"] = sys.executable
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Awx, str, str]]:
    with running(TOKEN) as (awx, address):
        done = run(address)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        yield awx, address, done.stdout + done.stderr


def test_everything_is_made_with_fields_that_awx_has(made: tuple[Awx, str, str]) -> None:
    awx, _, output = made
    assert awx.unknown == set()
    assert not any(secret in output for secret in SECRETS.values())
    templates = {item["name"].removeprefix("Edge fleet: "): item for item in awx.objects["job_templates"].values()}
    for item in templates.values():
        assert (ROOT / item["playbook"]).is_file()
        assert len(awx.lists[item["id"], "credentials"]) == 3
    assert {name for name, item in templates.items() if item["job_slice_count"] == 4} == {
        "plan", "preflight", "rollout", "verify",
    }  # fmt: skip
    source = awx.named("inventory_sources", "Edge fleet")
    assert source["source_path"] == "inventories/production"
    assert json.loads(source["source_vars"])["ANSIBLE_COLLECTIONS_PATH"] == "/runner/requirements_collections"
    assert awx.named("projects", "Edge fleet")["default_environment"] in awx.objects["execution_environments"]


def test_credentials_give_playbooks_the_variables_that_they_read(made: tuple[Awx, str, str]) -> None:
    types = made[0].objects["credential_types"].values()
    given = {name for item in types for name in item.get("injectors", {}).get("extra_vars", {})}
    known = yaml.safe_load((ROOT / "roles/defaults/defaults/main.yml").read_text())
    assert given == {"edgeml_store_username", "edgeml_store_password", "edgeml_ca_certificate_file"}
    assert given <= set(known)
    environment = {name for item in types for name in item.get("injectors", {}).get("env", {})}
    text = (ROOT / "roles/defaults/defaults/main.yml").read_text()
    assert environment
    assert [name for name in environment if f"'{name}'" not in text] == []
    store = made[0].named("credentials", "Edge fleet: store")
    assert made[0].secrets[store["id"]]["password"] == SECRETS["password"]
    key = made[0].named("credential_types", "Edge fleet: signing key")
    assert key["injectors"]["env"]["EDGEML_SIGNING_KEY"] == "{{ key }}"


def test_the_workflow_asks_a_person_between_canaries_and_all(made: tuple[Awx, str, str]) -> None:
    awx = made[0]
    nodes = {item["identifier"]: item for item in awx.objects["workflow_job_template_nodes"].values()}

    def after(name: str, outcome: str) -> list[str]:
        identifiers = {item["id"]: key for key, item in nodes.items()}
        return [identifiers[member] for member in awx.lists.get((nodes[name]["id"], f"{outcome}_nodes"), [])]

    way = ["plan"]
    while after(way[-1], "success"):
        way += after(way[-1], "success")
    assert way == ["plan", "canary", "verify_canary", "approval", "waves", "verify_all"]
    assert after("canary", "failure") == after("verify_canary", "failure") == ["rollback_canary"]
    assert after("verify_all", "failure") == ["rollback_all"]
    assert nodes["approval"]["unified_job_template"] in awx.objects["workflow_approval_templates"]
    for name in ("canary", "verify_canary", "rollback_canary"):
        assert nodes[name]["extra_data"] == {"edgeml_devices": "canary"}
    for item in awx.objects["schedules"].values():
        assert item["rrule"].startswith("DTSTART:")


def test_again_changes_only_what_the_variables_change(made: tuple[Awx, str, str]) -> None:
    awx, address, _ = made
    awx.writes.clear()
    again = run(address, awx_setup_project_branch="production")
    assert again.returncode == 0, again.stdout
    assert "changed=1" in again.stdout, again.stdout
    assert awx.named("projects", "Edge fleet")["scm_branch"] == "production"


@pytest.mark.parametrize(
    ("variable", "value"), [("awx_setup_project_url", ""), ("awx_setup_schedules", {"quickstart": "RRULE:X"})]
)
def test_what_awx_would_refuse_half_way_is_refused_first(variable: str, value: Any) -> None:
    with running(TOKEN) as (awx, address):
        done = run(address, **{variable: value})
        assert done.returncode != 0
        assert "Nothing was made" in done.stdout + done.stderr
        assert variable in done.stdout + done.stderr
        assert awx.writes == []
