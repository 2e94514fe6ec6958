# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes in files of variables: the inventory plugin names these files, not its own."""

from __future__ import annotations

import pytest

from .conftest import Inventory
from .test_placement_plugin import models

ENCRYPTED = "$ANSIBLE_VAULT;1.1;AES256\n6162\n"


@pytest.mark.parametrize("file", ["group_vars/all.yml", "group_vars/devices/more.yml", "host_vars/board.yml"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("line: 3\nedgeml_site: [\n", [":3. Seen: ", "correct the file"]),
        ("line: 3\nline: !unknown 4\n", [":2. Seen: ", "!unknown"]),
        ("- line\n", [":1. Seen: ", "give a mapping"]),
        (ENCRYPTED, [". Seen: ", "decrypt", "--vault-password-file"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(inventory: Inventory, file: str, text: str, words: list[str]) -> None:
    inventory.write(file, text)
    (problem,) = inventory.errors()
    assert problem.startswith(f"Variables cannot be read at {file}{words[0]}")
    assert [word for word in words if word not in problem] == []


def test_a_key_that_stands_twice_where_ansible_refuses_that(inventory: Inventory) -> None:
    inventory.write("group_vars/all.yml", "line: 3\nline: 4\n")
    inventory.environment["ANSIBLE_DUPLICATE_YAML_DICT_KEY"] = "error"
    done = inventory.run("--list")
    assert f"Variables cannot be read at {inventory.directory}/group_vars/all.yml:2. Seen: " in done.stderr


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("edgeml_site: no\n", "Not the name of a site at edgeml_site, host board."),
        ("edgeml_models: null\n", "edgeml_models would go before what the plugin places at edgeml_models, host board."),
        ("edgeml_model_overrides: no\n", "Wrong type at edgeml_model_overrides, host board."),
    ],
)
def test_a_value_whose_file_ansible_does_not_tell_names_no_file(inventory: Inventory, text: str, where: str) -> None:
    inventory.write("host_vars/board.yml", text)
    (problem,) = inventory.errors()
    assert problem.startswith(where)


@pytest.mark.parametrize("seen", ["2024-01-02", "2024-01-03", "{{ day }}"])
def test_a_variant_may_ask_for_a_date(inventory: Inventory, seen: str) -> None:
    inventory.write("group_vars/all.yml", f"installed: {seen}\n" if seen[0] == "2" else f'installed: "{seen}"\n')
    inventory.change("{architecture: arm64}", "{variables: {installed: 2024-01-02}}")
    variant = models(inventory.parse(), "board")["digits"].get("variant")
    assert variant == {"2024-01-02": "int8", "2024-01-03": "fp32"}.get(seen)


def test_an_anchor_that_refers_to_itself(inventory: Inventory) -> None:
    inventory.change("slo: {p95_ms: 25}", "options: &all {again: *all}")
    (problem,) = inventory.errors()
    assert problem.startswith("An anchor refers to itself at 20-placement.yml.")


def test_an_anchor_in_overrides_that_refers_to_itself(inventory: Inventory) -> None:
    inventory.write("host_vars/board.yml", "line: 3\nedgeml_model_overrides: {digits: &all {options: *all}}\n")
    (problem,) = inventory.errors()
    assert problem.startswith(
        "An anchor refers to itself at host_vars/board.yml:2, edgeml_model_overrides, host board."
    )
