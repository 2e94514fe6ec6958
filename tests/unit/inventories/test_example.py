# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""inventories/example says what docs/inventory.md tells of it, with the plugin and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.tests.fleet.variables_only import EXAMPLE, write_example_without_plugin

#: As docs/inventory.md tells it.
VAULT_PASSWORD = "correct horse battery staple"

#: Host: the models on it, each with version, variant and runtime.
EXPECTED = {
    "berlin-camera-1": {("digits", "1.1.0", "fp32", "runtime"), ("photo", "1.0.0", "default", "vision")},
    "berlin-camera-2": {("digits", "1.1.0", "int8", "runtime")},
    "berlin-gateway-1": {("file_type", "1.0.0", "default", "runtime")},
    "lyon-camera-1": {("digits", "1.1.0", "int8", "runtime")},
    "lyon-camera-2": {("digits", "1.0.0", "default", "runtime"), ("photo", "1.0.0", "default", "vision")},
    "lyon-gateway-1": {("file_type", "1.0.0", "default", "runtime")},
    "osaka-camera-1": {("digits", "1.0.0", "default", "runtime")},
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
    return found


def models_of_devices(inventory: Path, vault: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return what the role makes of each device's models."""
    playbook = Path(__file__).with_name("models_of_devices.yml")
    output = run(
        "ansible-playbook", "-i", inventory, *vault, playbook, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json"
    )  # fmt: skip
    results = json.loads(output)["plays"][0]["tasks"][0]["hosts"]
    return {host: result["__inference_runtime_models"] for host, result in results.items()}


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
    by_plugin = models_of_devices(EXAMPLE, vault)
    assert {host: len(models) for host, models in by_plugin.items()} == {
        host: len(models) for host, models in EXPECTED.items()
    }
    assert models_of_devices(write_example_without_plugin(tmp_path / "example"), vault) == by_plugin
    listed = {host: inventory["_meta"]["hostvars"][host].get("edgeml_models", []) for host in EXPECTED}
    assert {host: without_digest(models) for host, models in listed.items()} == {
        host: without_digest(models) for host, models in by_plugin.items()
    }
