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
