# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles make of edgeml_mirror_clients, on the mirror and on its devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[3] / "roles"
PLACE = "/etc/docker/certs.d/registry.edgeml.internal:5443"
Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Return a function that computes an expression, or the options of a role's task, with a host's variables."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for role in ("defaults", "inference_runtime", "registry_client", "site_mirror", "private_ca"):
        for part in ("defaults", "vars"):
            file = ROLES / role / part / "main.yml"
            variables |= loader.load_from_file(str(file), trusted_as_template=True) if file.exists() else {}
    for name in ("ca.crt", "camera-1.crt", "camera-1.key", "clients.crt"):
        (tmp_path / name).write_text(f"{name}\n")
    variables |= {
        "inventory_hostname": "camera-1",
        "inventory_dir": str(tmp_path / "fleet"),
        "edgeml_pki_directory": str(tmp_path),
        "inference_runtime_lock": {"registry": "registry.edgeml.internal:5443"},
        "__site_mirror_preflight_registry": {},
    }

    def answer(expression: str = "", *, task: str = "", module: str = "", **inventory: Any) -> Any:
        templar = Templar(loader=loader, variables=variables | inventory)
        if expression:
            return templar.template(trust_as_template(expression))
        tasks = loader.load_from_file(str(ROLES / f"{task}.yml"), trusted_as_template=True)
        (options,) = [entry[f"edgeml.fleet.{module}"] for entry in tasks if f"edgeml.fleet.{module}" in entry]
        return templar.template(options)

    return answer


def test_a_device_has_what_it_presents_where_the_engine_looks(ask: Ask) -> None:
    told = ask(task="registry_client/tasks/main", module="file_set")
    assert (told["path"], told["files"]) == (PLACE, {"ca.crt": "ca.crt\n"})
    assert told["absent"] == ["client.cert", "client.key"]
    told = ask(task="registry_client/tasks/main", module="file_set", edgeml_mirror_clients="certificate")
    assert told["files"] == {"ca.crt": "ca.crt\n", "client.cert": "camera-1.crt\n", "client.key": "camera-1.key\n"}
    assert (told["absent"], told["file_modes"]) == ([], {"client.key": "0600"})


def test_a_device_is_compared_by_what_it_presents(ask: Ask, tmp_path: Path) -> None:
    """And by nothing new where it presents nothing."""
    document = "{{ __edgeml_mirror_client.values() | map('ansible.builtin.hash', 'sha256') | list }}"
    evidence = "{{ __inference_runtime_client_evidence }}"
    assert (ask(document), ask(evidence)) == ([], [])
    before = ask(document, edgeml_mirror_clients="certificate")
    assert [entry["path"] for entry in ask(evidence, edgeml_mirror_clients="certificate")] == [
        f"{PLACE}/client.cert", f"{PLACE}/client.key",
    ]  # fmt: skip
    (tmp_path / "camera-1.crt").write_text("renewed")
    assert ask(document, edgeml_mirror_clients="certificate") != before


def test_preflight_presents_what_the_host_will(ask: Ask, tmp_path: Path) -> None:
    told = "{{ __inference_runtime_registry | combine(__edgeml_mirror_client) }}"
    certificates = "{{ __inference_runtime_certificates }}"
    assert "client_key" not in ask(told)
    assert len(ask(certificates)) == 1
    assert ask(told, edgeml_mirror_clients="certificate")["client_certificate"] == "camera-1.crt"
    own = {
        "edgeml_mirror_client_certificate_file": str(tmp_path / "clients.crt"),
        "edgeml_mirror_client_key_file": "none",
    }
    assert ask(told, **own)["client_certificate"] == "clients.crt"
    assert ask(told, **own)["client_key"] == ""
    assert ask(certificates, **own)[1] == str(tmp_path / "clients.crt")


def test_a_mirror_that_asks_for_none_is_what_it_was(ask: Ask, tmp_path: Path) -> None:
    service = {"task": "site_mirror/tasks/service", "module": "service_container", "__site_mirror_image": "mirror"}
    documented = "{{ __site_mirror_document.certificates | length }}"
    assert len(ask(**service)["volumes"]) == 4
    assert int(ask(documented)) == 3
    asks = {"edgeml_mirror_clients": "certificate"}
    assert len(ask(**service, **asks)["volumes"]) == 5
    assert int(ask(documented, **asks)) == 4
    assert ask("{{ site_mirror_client_ca_certificate_file }}", **asks) == str(tmp_path / "ca.crt")


def test_a_mirror_presents_to_its_neighbour_what_devices_do(ask: Ask) -> None:
    neighbours = [{"address": "one:5443"}, {"address": "two:5443", "client_certificate": "theirs", "client_key": "key"}]
    found = "{{ __site_mirror_fallbacks }}"
    assert ask(found) == []
    assert ask(found, edgeml_mirror_clients="certificate") == []
    assert [entry.get("client_certificate") for entry in ask(found, site_mirror_fallbacks=neighbours)] == [
        None,
        "theirs",
    ]
    presented = ask(found, site_mirror_fallbacks=neighbours, edgeml_mirror_clients="certificate")
    assert [(entry["client_certificate"], entry["client_key"]) for entry in presented] == [
        ("camera-1.crt", "camera-1.key"), ("theirs", "key"),
    ]  # fmt: skip


def test_the_private_authority_renews_where_it_has_to(ask: Ask) -> None:
    told = {
        "task": "private_ca/tasks/main",
        "module": "host_certificate",
        "group_names": [],
        "ansible_host": "camera-1",
    }
    assert ask(**told)["client"] is False
    assert ask(**told, edgeml_mirror_clients="certificate")["client"] is True
