# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's registry is replaced for another certificate or configuration, and not for another password."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.service_container import Readiness, ServiceContainer

ROLE = Path(__file__).parents[3] / "roles" / "model_store"


class OneImage(DockerEngine):
    def __init__(self) -> None:
        pass

    def image_id(self, image: str) -> str:
        return "sha256:1"


@pytest.mark.parametrize(
    ("tasks", "template", "place"), [("service", "registry", ""), ("pull", "registry_pull", "/pull")]
)
def test_a_new_password_replaces_no_registry(tasks: str, template: str, place: str, tmp_path: Path) -> None:
    loader = DataLoader()
    key = tmp_path / "server.key"
    key.write_text("key")
    (options,) = [
        task["edgeml.fleet.service_container"]
        for task in loader.load_from_file(str(ROLE / "tasks" / f"{tasks}.yml"), trusted_as_template=True)
        if "edgeml.fleet.service_container" in task
    ]

    def made_of(password: str, certificate: str) -> str:
        variables = {
            "model_store_configuration_directory": str(tmp_path),
            "__model_store_pull_directory": str(tmp_path / "pull"),
            "model_store_tls_key_file": str(key),
            "model_store_username": "edgeml",
            "model_store_password": password,
            "ansible_managed": "managed",
        }
        templar = Templar(loader=loader, variables=variables)
        directory = Path(f"{tmp_path}{place}")
        directory.mkdir(exist_ok=True)
        source = (ROLE / "templates" / f"{template}.yml.j2").read_text()
        (directory / "registry.yml").write_text(templar.template(trust_as_template(source)))
        (directory / "server.crt").write_text(certificate)
        (directory / "htpasswd").write_text(password)
        configuration = templar.template(options["configuration"])
        container = ServiceContainer(
            "edgeml-store", "store", [], [], configuration, 64, 64, [], Readiness("https://127.0.0.1", "/v2/", 401, 1)
        )
        return container.made_of(OneImage())

    first = made_of("old", "one")
    assert made_of("new", "one") == first
    assert made_of("new", "two") != first
