# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task computes what it is told once, however many of its options come from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement import resolver
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases import models as models_room
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.demand import with_demand

ROLES = Path(__file__).parents[3] / "roles"
DIGEST = "sha256:" + "a" * 64
LOCK: dict[str, Any] = {
    "serial": 1,
    "registry": "registry.edgeml.internal:5443",
    "images": {
        "runtime": {"repository": "edgeml/runtime", "platforms": {"amd64": {"digest": DIGEST, "size": 9}}},
    },
    "models": {
        "digits": {
            "1.0.0": {
                "platform": "onnxruntime_onnx",
                "variants": {
                    "default": {
                        "repository": "edgeml/models/digits",
                        "digest": DIGEST,
                        "blob": {"digest": DIGEST, "size": 5},
                        "golden_cases": 2,
                    }
                },
            }
        }
    },
}
REQUIRES = {"memory_mb": 10, "packages": ["libgomp1"], "kernel_modules": ["loop"], "sysctls": {"vm.swappiness": 1}}


@pytest.fixture
def templar(tmp_path: Path) -> Templar:
    """Ansible's templates with the variables of the role on one host."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for file in ("defaults/defaults", "defaults/vars", "inference_runtime/defaults", "inference_runtime/vars"):
        variables |= loader.load_from_file(str(ROLES / file / "main.yml"), trusted_as_template=True)
    (tmp_path / "ca.crt").write_text("certificate")
    (tmp_path / "fleet.lock.yml").write_text(yaml.safe_dump(LOCK))
    variables |= {
        "inventory_hostname": "camera-1",
        "inventory_dir": str(tmp_path / "fleet"),
        "ansible_facts": {},
        "edgeml_architecture": "amd64",
        "edgeml_mirror_ip_address": "127.0.0.1",
        "edgeml_signatures": "ignored",
        "edgeml_ca_certificate_file": str(tmp_path / "ca.crt"),
        "edgeml_runtimes": [{"name": "runtime", "recipe": "image.yml"}],
        "edgeml_catalogue": [
            {
                "name": "digits",
                "version": "1.0.0",
                "platform": "onnxruntime_onnx",
                "source": "models/digits",
                "requires": REQUIRES,
            }
        ],
        "edgeml_models": [{"name": "digits"}],
        "inference_runtime_listen_address": "127.0.0.1",
    }
    variables["hostvars"] = {"camera-1": dict(variables)}
    return Templar(loader=loader, variables=variables)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts whose models were resolved, one entry for each time."""
    hosts: list[str] = []

    def counting(name: str, *arguments: Any, **options: Any) -> Any:
        hosts.append(name)
        return resolver.resolve_host(name, *arguments, **options)

    monkeypatch.setattr(models_room, "resolve_host", counting)
    return hosts


def test_the_document_of_a_host_resolves_its_models_once(templar: Templar, resolved: list[str]) -> None:
    document = templar.template(trust_as_template("{{ __inference_runtime_document }}"))
    assert resolved == ["camera-1"]
    assert set(document) == {
        "releases", "configuration", "mqtt", "secrets", "registry", "authority", "directories", "packages",
        "kernel_modules", "sysctls", "signatures",
    }  # fmt: skip
    assert document["releases"] == templar.template(trust_as_template("{{ __inference_runtime_releases }}"))
    assert document["packages"] == templar.template(trust_as_template("{{ __inference_runtime_packages }}"))
    assert (document["kernel_modules"], document["sysctls"]) == (["loop"], {"vm.swappiness": "1"})


def test_settings_of_the_guard_are_part_of_the_document(templar: Templar) -> None:
    """Where they are another than the default: hosts from before there was a choice differ in nothing."""
    variables = {**templar.available_variables, "inference_runtime_guard_repairs": "yes"}
    told = templar.copy_with_new_env(available_variables=variables)
    document = told.template(trust_as_template("{{ __inference_runtime_document }}"))
    assert document["guard"] == [60.0, 600, 5.0, True]


def test_preflight_resolves_the_models_of_a_host_once(templar: Templar, resolved: list[str]) -> None:
    file = ROLES / "inference_runtime" / "tasks" / "preflight.yml"
    (task,) = [
        task["edgeml.fleet.host_preflight"]
        for task in DataLoader().load_from_file(str(file), trusted_as_template=True)
        if "edgeml.fleet.host_preflight" in task
    ]
    options = templar.template(task)
    assert resolved == ["camera-1"]
    joined = with_demand(options)
    assert "demand" not in joined
    assert [problem["finding"] for problem in joined["problems"]] == ["unsigned"]
    assert [entry["kind"] for entry in joined["content"]] == ["image", "model"]
    assert joined["requires"]["kernel_modules"] == ["loop"]
    assert [entry["port"] for entry in joined["ports"]] == [8000, 8001, 8002]


def test_a_lock_that_cannot_be_read_is_told_before_the_models_that_it_would_place(
    templar: Templar, tmp_path: Path
) -> None:
    variables = dict(templar.available_variables)
    del variables["edgeml_models"]
    (tmp_path / "fleet.lock.yml").write_text("")
    alone = Templar(loader=DataLoader(), variables=variables)
    with pytest.raises(AnsibleError, match="The lock cannot be read"):
        alone.template(trust_as_template("{{ __inference_runtime_demand }}"))


def test_what_a_task_says_stands_behind_its_demand() -> None:
    joined = with_demand({"demand": {"content": [1], "memory_mb": {"a": 1}}, "content": [2], "root": "/"})
    assert joined == {"content": [1, 2], "memory_mb": {"a": 1}, "root": "/"}


def test_a_play_needs_no_catalogue_where_there_is_a_lock(templar: Templar) -> None:
    variables = dict(templar.available_variables)
    for name in ("edgeml_catalogue", "edgeml_runtimes"):
        del variables[name]
    variables["hostvars"] = {"camera-1": {"inventory_hostname": "camera-1"}}
    alone = Templar(loader=DataLoader(), variables=variables)
    demand = alone.template(trust_as_template("{{ __inference_runtime_demand }}"))
    assert demand["problems"] == []
    assert [content["name"] for content in demand["content"]] == ["image runtime", "model digits 1.0.0"]
    del variables["edgeml_models"]
    with pytest.raises(AnsibleError, match="No models are named for this host"):
        Templar(loader=DataLoader(), variables=variables).template(trust_as_template("{{ inference_runtime_models }}"))
