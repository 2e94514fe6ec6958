# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An inventory of two sites, written anew for each test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import cache_loader, inventory_loader
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand

HOSTS = """
all:
  children:
    mirrors: {hosts: {mirror: {edgeml_architecture: amd64}}}
    devices: {hosts: {board: {edgeml_architecture: aarch64}, camera: {edgeml_architecture: arm64}, server: {}}}
    cameras: {hosts: {camera: {}}}
    site_berlin: {hosts: {board: {}, camera: {}}}
    site_oslo: {hosts: {server: {}}}
"""
PLACEMENT = """
plugin: edgeml.fleet.placement
runtimes:
  - {name: runtime, recipe: ../image.yml}
  - {name: vision, extends: runtime, ports: {rest: 8010, grpc: 8011, metrics: 8012}}
catalogue:
  - name: digits
    version: 1.0.0
    platform: onnxruntime_onnx
    source: ../models/digits
    variants:
      - {name: int8, file: int8.onnx, when: {architecture: arm64}}
      - {name: fp32, file: fp32.onnx}
    slo: {p95_ms: 25}
  - name: sound-events
    version: 2.0.0
    platform: python
    source: models/sound
placement:
  - {models: [digits], hosts: devices}
  - {models: [sound-events], hosts: "site_berlin:&cameras", slo: {p95_ms: 40}}
"""


class Inventory:
    """A directory of inventory sources, and what Ansible makes of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        self.write("10-hosts.yml", HOSTS)
        self.write("20-placement.yml", PLACEMENT)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def change(self, old: str, new: str) -> int:
        """Change the placement and return the line of the change."""
        path = self.directory / "20-placement.yml"
        text = path.read_text()
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new))
        return text[: text.index(old)].count("\n") + 1

    def remember(self, host: str, facts: dict[str, Any]) -> None:
        """Put facts into a fact cache of the runs to come."""
        directory = str(self.directory.parent / "facts")
        cache_loader.get("ansible.builtin.jsonfile", _uri=directory).set(host, facts)
        self.environment |= {
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": directory,
        }

    def run(self, *arguments: str, program: str = "ansible-inventory") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name(program), "-i", self.directory, *arguments],
            env={**os.environ, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", "COLUMNS": "10000"}
            | self.environment,
            cwd=self.directory.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def listed(self, *arguments: str) -> dict[str, Any]:
        """Return the output of ``--list`` without the marks of text that is not a template, and with full models.

        Like a play, it expands ``edgeml_models``, which is a template on the hosts that have models.
        """
        done = self.run("--list", *arguments)
        assert done.returncode == 0, done.stderr
        listed = dict(unmarked(json.loads(done.stdout)))
        expand_models(listed)
        return listed

    def host(self, name: str) -> dict[str, Any]:
        return dict(self.listed()["_meta"]["hostvars"][name])

    def parse(self, **options: Any) -> InventoryManager:
        """Parse the hosts' source and then the placement in this process; AnsibleParserError if it is refused."""
        loader = DataLoader()
        manager = InventoryManager(loader, sources=[str(self.directory / "10-hosts.yml")])
        plugin = inventory_loader.get("edgeml.fleet.placement")
        path = str(self.directory / "20-placement.yml")
        assert plugin.verify_file(path)
        manager._inventory.current_source = path
        plugin.parse(manager._inventory, loader, path, **options)
        return manager

    def errors(self) -> list[str]:
        """Return the problems for which the placement is refused."""
        with pytest.raises(AnsibleParserError) as caught:
            self.parse()
        return [line.replace(f"{self.directory}/", "") for line in caught.value.message.splitlines()]


def unmarked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value["__ansible_unsafe"] if set(value) == {"__ansible_unsafe"} else {
            key: unmarked(item) for key, item in value.items()
        }  # fmt: skip
    return [unmarked(item) for item in value] if isinstance(value, list) else value


def expand_models(listed: Mapping[str, Any]) -> None:
    """Put each host's models in full in place of the template ``edgeml_models``, in an output of ``--list``."""
    exported = listed.get("all", {}).get("vars", {})
    for variables in listed["_meta"]["hostvars"].values():
        if "edgeml_placed" in variables:
            models = variables.get("edgeml_placed_models", exported.get("edgeml_placed_models"))
            variables["edgeml_models"] = expand(variables["edgeml_placed"], models)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return Inventory(tmp_path / "fleet")
