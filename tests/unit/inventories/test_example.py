# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""inventories/example says what docs/inventory.md tells of it, with the plugin and without."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand
from ansible_collections.edgeml.fleet.tests.fleet.variables_only import EXAMPLE, write_example_without_plugin

ROLES = EXAMPLE.parents[1] / "roles"
#: As docs/inventory.md tells it.
VAULT_PASSWORD = "correct horse battery staple"

#: Host: the models on it, each with version, variant and runtime.
EXPECTED = {
    "berlin-camera-1": {("digits", "1.1.0", "fp32", "runtime"), ("photo", "1.0.0", "default", "vision")},
    "berlin-camera-2": {("digits", "1.1.0", "int8", "runtime")},
    "berlin-gateway-1": {("file_type", "1.0.0", "default", "runtime")},
    "lyon-camera-1": {("digits", "1.1.0", "int8", "runtime")},
    "lyon-camera-2": {("digits", "1.0.0", "default", "runtime"), ("photo", "1.0.0", "default", "vision")},
    "lyon-gateway-1": {("file_type", "1.0.0", "default", "runtime"), ("voice", "1.0.0", "int8", "runtime")},
    "osaka-camera-1": {("digits", "1.0.0", "default", "runtime"), ("text_direction", "1.0.0", "int8", "runtime")},
    "osaka-camera-2": {("digits", "1.0.0", "default", "runtime")},
    "osaka-gateway-1": set(),
}


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("vault") / "password"
    file.write_text(VAULT_PASSWORD + "\n")
    return ["--vault-password-file", str(file)]


def run(program: str, *arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        env={**os.environ, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def inventory(vault: list[str]) -> dict[str, Any]:
    # Text that no person wrote into a variable is marked, so that whoever reads this takes it for no template.
    found: dict[str, Any] = json.loads(
        run("ansible-inventory", "-i", EXAMPLE, *vault, "--list"),
        object_hook=lambda value: value.get("__ansible_unsafe", value),
    )
    for variables in found["_meta"]["hostvars"].values():
        if "edgeml_placed" in variables:  # edgeml_models is the template that does this
            variables["edgeml_models"] = expand(variables["edgeml_placed"], variables["edgeml_placed_models"])
    return found


def lock_of_example() -> dict[str, Any]:
    """Return a lock as edgeml.fleet.publish would write it, with digests made up from names."""
    placement = yaml.safe_load((EXAMPLE / "20-placement.yml").read_text())

    def content(*names: str) -> dict[str, Any]:
        return {"digest": "sha256:" + hashlib.sha256(" ".join(names).encode()).hexdigest(), "size": 1000}

    def platforms(*names: str) -> dict[str, Any]:
        return {architecture: content(*names, architecture) for architecture in ("amd64", "arm64")}

    images = {
        name: {"repository": f"edgeml/{name}", "digest": content(name)["digest"], "platforms": platforms(name)}
        for name in ("mirror", *(runtime["name"] for runtime in placement["runtimes"]))
    }
    models: dict[str, Any] = {}
    for model in placement["catalogue"]:
        variants = {}
        for variant in model.get("variants", [{"name": "default"}]):
            names = (model["name"], model["version"], variant["name"])
            variants[variant["name"]] = {
                "repository": f"edgeml/models/{model['name']}",
                "digest": content(*names, "manifest")["digest"],
                "index": content(*names, "index")["digest"],
                "platforms": platforms(*names),
                "blob": content(*names, "blob"),
                "golden_cases": 1,
            }
        models.setdefault(model["name"], {})[model["version"]] = {"platform": model["platform"], "variants": variants}
    lock = {"serial": 1, "registry": "registry.edgeml.internal:5443", "images": images, "models": models}
    assert validate(lock, "lock") == []
    return lock


def of_devices(inventory: Path, vault: list[str], lock: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return what the role makes of each device: ``models``, and ``releases``, all that their ids are made of."""
    variables: dict[str, Any] = {}
    for role in ("defaults", "inference_runtime"):
        for folder in ("defaults", "vars"):
            variables |= yaml.safe_load((ROLES / role / folder / "main.yml").read_text())
    # Read before the inventory's own files, and so lowest, as a role's defaults are.
    (inventory / "group_vars" / "all" / "00-roles.yml").write_text(yaml.safe_dump(variables))
    playbook = Path(__file__).with_name("releases_of_devices.yml")
    output = run(
        "ansible-playbook", "-i", inventory, *vault, playbook, "-e", f"edgeml_lock_file={lock}",
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
    )  # fmt: skip
    results = json.loads(output)["plays"][0]["tasks"][-1]["hosts"]
    return {host: result["msg"] for host, result in results.items()}


def without_digest(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in model.items() if key != "digest"} for model in models]


def test_each_host_gets_its_models(inventory: dict[str, Any]) -> None:
    variables = inventory["_meta"]["hostvars"]
    for host, expected in EXPECTED.items():
        models = variables[host].get("edgeml_models", [])
        assert {(model["name"], model["version"], model["variant"], model["runtime"]) for model in models} == expected
    for host in ("controller", "central", "berlin-mirror"):
        assert not variables[host].get("edgeml_models")


def test_overrides_and_rules_go_before_the_catalogue(inventory: dict[str, Any]) -> None:
    def model(host: str, name: str) -> dict[str, Any]:
        (found,) = (item for item in inventory["_meta"]["hostvars"][host]["edgeml_models"] if item["name"] == name)
        return dict(found)

    assert model("osaka-camera-1", "digits")["slo"] == {"p95_ms": 25, "protocol": "grpc"}
    assert model("osaka-camera-2", "digits")["slo"] == {"p95_ms": 80, "protocol": "grpc"}
    assert model("berlin-gateway-1", "file_type")["protocols"] == ["rest", "grpc"]
    assert model("lyon-gateway-1", "file_type")["protocols"] == ["rest", "grpc", "mqtt"]
    catalogued = {"memory_mb": 320, "python": ["pillow>=11"]}
    assert model("berlin-camera-1", "photo")["requires"] == catalogued
    assert model("lyon-camera-2", "photo")["requires"] == catalogued | {
        "devices": ["/dev/video0"],
        "kernel_modules": ["uvcvideo"],
        "packages": ["v4l-utils"],
    }


def test_groups_follow(inventory: dict[str, Any], vault: list[str]) -> None:
    assert inventory["variant_digits_int8"]["hosts"] == ["berlin-camera-2", "lyon-camera-1"]
    assert set(inventory["model_photo"]["hosts"]) == {"berlin-camera-1", "lyon-camera-2"}
    assert {"berlin-camera-2", "osaka-mirror"} <= set(inventory["arch_arm64"]["hosts"])
    graph = run("ansible-inventory", "-i", EXAMPLE, *vault, "--graph", "site_osaka")
    assert "osaka-camera-2" in graph
    assert "lyon" not in graph


def test_secrets_are_encrypted() -> None:
    assert (EXAMPLE / "group_vars" / "all" / "vault.yml").read_text().startswith("$ANSIBLE_VAULT;1.1;AES256")


def test_variables_alone_give_the_same(inventory: dict[str, Any], vault: list[str], tmp_path: Path) -> None:
    lock = tmp_path / "lock.yml"
    lock.write_text(yaml.safe_dump(lock_of_example()))
    by_plugin = of_devices(shutil.copytree(EXAMPLE, tmp_path / "plugin" / "example"), vault, lock)
    assert {host: len(found["models"]) for host, found in by_plugin.items()} == {
        host: len(models) for host, models in EXPECTED.items()
    }
    assert [release["name"] for release in by_plugin["berlin-camera-1"]["releases"]] == ["runtime", "vision"]
    assert by_plugin["lyon-camera-2"]["releases"][1]["devices"] == ["/dev/video0"]
    assert of_devices(write_example_without_plugin(tmp_path / "variables" / "example"), vault, lock) == by_plugin
    listed = {host: inventory["_meta"]["hostvars"][host].get("edgeml_models", []) for host in EXPECTED}
    assert {host: without_digest(models) for host, models in listed.items()} == {
        host: without_digest(found["models"]) for host, found in by_plugin.items()
    }
