# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups that the inventory plugin makes of sites and architectures count for the models that it places."""

from __future__ import annotations

import pytest

from .conftest import Inventory
from .test_placement_plugin import models


def variant(inventory: Inventory, host: str) -> str | None:
    chosen: str | None = models(inventory.parse(), host)["digits"].get("variant")
    return chosen


@pytest.mark.parametrize("group", ["site_hall_7", "arch_arm64"])
def test_a_variant_may_ask_for_a_group_that_the_plugin_makes(inventory: Inventory, group: str) -> None:
    inventory.write("host_vars/board.yml", "edgeml_site: hall-7\n")
    inventory.write("host_vars/server.yml", "edgeml_architecture: amd64\n")
    inventory.change("{architecture: arm64}", f"{{groups: [{group}]}}")
    assert variant(inventory, "board") == "int8"
    assert variant(inventory, "server") == "fp32"


def test_an_architecture_that_is_not_known_yet_awaits_the_role(inventory: Inventory) -> None:
    inventory.change("{architecture: arm64}", "{groups: [arch_arm64]}")
    assert variant(inventory, "server") is None


def test_a_group_of_an_architecture_that_no_host_has_is_known(inventory: Inventory) -> None:
    inventory.write("10-hosts.yml", "devices: {hosts: {board: {}}}\ncameras: {}\nsite_berlin: {hosts: {board: {}}}\n")
    inventory.change("site_berlin:&cameras", "site_berlin")
    inventory.change("{architecture: arm64}", "{groups: [arch_arm64]}")
    assert variant(inventory, "board") is None


@pytest.mark.parametrize(("group", "meant"), [("camera", "cameras"), ("site_berln", "site_berlin")])
def test_a_group_that_does_not_exist_is_refused(inventory: Inventory, group: str, meant: str) -> None:
    line = inventory.change("{architecture: arm64}", f"{{groups: [devices, {group}]}}")
    (problem,) = inventory.errors()
    words = [
        f"No group is called {group} at 20-placement.yml:{line}, catalogue[0].variants[0].when.groups[1]",
        f"did you mean {meant}",
    ]
    assert [word for word in words if word not in problem] == []


def test_variables_of_a_site_s_group_count(inventory: Inventory) -> None:
    inventory.write("host_vars/board.yml", "edgeml_site: hall-7\n")
    inventory.write("host_vars/server.yml", "edgeml_site: hall-7\nedgeml_model_overrides: {}\n")
    inventory.write(
        "group_vars/site_hall_7.yml",
        "edgeml_architecture: arm64\nline: fast\nedgeml_model_overrides: {digits: {enabled: false}}\n",
    )
    inventory.change("{architecture: arm64}", "{architecture: arm64, variables: {line: fast}}")
    manager = inventory.parse()
    assert models(manager, "board") == {}
    assert models(manager, "server")["digits"]["variant"] == "int8", "the host's own variable goes before its group's"
    assert models(manager, "camera")["digits"]["variant"] == "fp32"
    assert [host.name for host in manager.groups["arch_arm64"].hosts] == ["board", "camera", "server"]


def test_variables_of_an_architecture_s_group_count(inventory: Inventory) -> None:
    inventory.write("group_vars/arch_arm64.yml", "edgeml_memory_mb: 512\n")
    inventory.change("{architecture: arm64}", "{max_memory_mb: 512}")
    assert variant(inventory, "board") == "int8"
    assert variant(inventory, "server") is None


def test_groups_above_a_site_s_group_count(inventory: Inventory) -> None:
    hosts = inventory.directory / "10-hosts.yml"
    hosts.write_text(hosts.read_text() + "    north: {children: {site_oslo: {}}}\n")
    inventory.write("host_vars/board.yml", "edgeml_site: oslo\n")
    inventory.write("group_vars/north.yml", "edgeml_model_overrides: {digits: {slo: {p95_ms: 7}}}\n")
    inventory.change("{architecture: arm64}", "{groups: [north]}")
    board, camera = (models(inventory.parse(), host)["digits"] for host in ("board", "camera"))
    assert (board["variant"], board["slo"]) == ("int8", {"p95_ms": 7})
    assert (camera["variant"], camera["slo"]) == ("fp32", {"p95_ms": 25})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("site_hall_7", "edgeml_site: hall-8\n"),
        ("arch_arm64", "edgeml_site: hall-8\n"),
        ("arch_arm64", "edgeml_architecture: amd64\n"),
    ],
)
def test_what_decides_on_a_group_does_not_come_from_it(inventory: Inventory, file: str, text: str) -> None:
    hosts = "devices: {hosts: {board: {}}, vars: {edgeml_site: hall-7, edgeml_architecture: arm64}}\n"
    inventory.write("10-hosts.yml", hosts + "kinds: {children: {arch_arm64: {}, site_hall_7: {}}}\n")
    inventory.change('"site_berlin:&cameras"', "devices")
    inventory.write(f"group_vars/{file}.yml", text)
    (problem,) = inventory.errors()
    variable = text.partition(":")[0]
    assert f"{variable} decides on groups" in problem and f"group_vars/{file}.yml:1" in problem


@pytest.mark.parametrize("group", ["model_digits", "variant_digits_int8"])
def test_variables_of_a_model_s_group_come_too_late(inventory: Inventory, group: str) -> None:
    inventory.write(f"group_vars/{group}.yml", "other: 1\nedgeml_model_overrides: {digits: {enabled: false}}\n")
    (problem,) = inventory.errors()
    assert f"group_vars/{group}.yml:2" in problem and f"hosts join the group {group} only afterwards" in problem


def test_two_sites_of_one_group_are_refused(inventory: Inventory) -> None:
    inventory.write("host_vars/board.yml", "edgeml_site: hall-7\n")
    inventory.write("host_vars/server.yml", "edgeml_site: hall_7\n")
    (problem,) = inventory.errors()
    words = ["Sites hall-7 and hall_7 would share a group", "host_vars/server.yml:1", "site_hall_7", "rename one"]
    assert [word for word in words if word not in problem] == []


def test_two_variants_of_one_group_are_refused(inventory: Inventory) -> None:
    inventory.change("{name: int8,", "{name: int8-new,")
    variants = "[{name: new, file: a, when: {architecture: arm64}}, {name: other, file: b}]"
    line = inventory.change("name: sound-events", f"name: digits-int8\n    variants: {variants}")
    inventory.change("models: [sound-events]", "models: [digits-int8]")
    (problem,) = inventory.errors()
    words = [f"20-placement.yml:{line + 1}, catalogue[1].variants[0].name", "variant_digits_int8_new"]
    assert [word for word in words if word not in problem] == []
    assert "Variants int8-new of model digits and new of model digits-int8 would share a group" in problem
