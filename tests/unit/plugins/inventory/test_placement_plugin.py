# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin, through ansible-inventory."""

from __future__ import annotations

from .conftest import Inventory


def test_models_and_groups_of_each_host(inventory: Inventory) -> None:
    listed = inventory.listed()
    hosts = listed["_meta"]["hostvars"]
    assert hosts["camera"]["edgeml_models"] == [
        {"name": "digits", "version": "1.0.0", "variant": "int8", "runtime": "runtime", "requires": {},
         "protocols": ["rest", "grpc"], "options": {}, "slo": {"p95_ms": 25}},
        {"name": "sound-events", "version": "2.0.0", "variant": "default", "runtime": "runtime", "requires": {},
         "protocols": ["rest", "grpc"], "options": {}, "slo": {"p95_ms": 40}},
    ]  # fmt: skip
    assert [model["name"] for model in hosts["board"]["edgeml_models"]] == ["digits"]
    assert "variant" not in hosts["server"]["edgeml_models"][0], "nobody knows its architecture"
    assert hosts["mirror"]["edgeml_models"] == []
    groups = {name: sorted(group.get("hosts", [])) for name, group in listed.items() if "_" in name[1:]}
    assert groups == {
        "site_berlin": ["board", "camera"],
        "site_oslo": ["server"],
        "arch_amd64": ["mirror"],
        "arch_arm64": ["board", "camera"],
        "model_digits": ["board", "camera", "server"],
        "model_sound_events": ["camera"],
        "variant_digits_int8": ["board", "camera"],
    }


def test_paths_are_absolute(inventory: Inventory) -> None:
    host = inventory.host("board")
    root = inventory.directory.parent
    assert [model["source"] for model in host["edgeml_catalogue"]] == [
        f"{root}/models/digits",
        f"{root}/fleet/models/sound",
    ]
    assert host["edgeml_runtimes"][0]["recipe"] == f"{root}/image.yml"
