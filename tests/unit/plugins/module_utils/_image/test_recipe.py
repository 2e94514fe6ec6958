# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes are read strictly, and errors say which key is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import User, parse_recipe

REPOSITORY_ROOT = Path(__file__).parents[5]
SHIPPED = ["runtime/image/image.yml", "roles/model_store/files/image.yml", "roles/site_mirror/files/image.yml"]
RECIPE: dict[str, Any] = {
    "base": {
        "suite": "trixie",
        "packages": ["libc6"],
        "users": [{"name": "edgeml", "uid": 65532, "gid": 65532}],
    },
    "python": {"version": "3.13", "requirements": "lock.txt", "target": "/opt/python", "exclude": {"sympy": "unused"}},
    "files": [{"source": "src/package", "target": "/opt/app/package"}],
    "config": {"user": "65532:65532", "entrypoint": ["/bin/app"], "exposed_ports": ["8000/tcp"]},
}


def test_reads_every_section() -> None:
    recipe = parse_recipe(RECIPE)
    assert recipe.base and recipe.python
    assert recipe.base.users == (User("edgeml", 65532, 65532, "/nonexistent"),)
    assert recipe.python.exclude == {"sympy": "unused"}
    assert recipe.files[0].target == "/opt/app/package"
    assert recipe.config.working_directory == "/"


@pytest.mark.parametrize("path", SHIPPED)
def test_shipped_recipes_are_valid_and_run_without_rights(path: str) -> None:
    recipe = parse_recipe(yaml.safe_load((REPOSITORY_ROOT / path).read_text()))
    assert recipe.config.user == "65532:65532"


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("base.suite", 13, "recipe.base.suite"),
        ("base.packages", [], "recipe.base.packages"),
        ("base.packages", ["libc6 curl"], "recipe.base.packages"),
        ("base.packages", "libc6", "recipe.base.packages"),
        ("base.users", [{"name": "edgeml", "uid": "65532", "gid": 65532}], "recipe.base.users[0].uid"),
        ("base.users", [{"name": "a:b", "uid": 1, "gid": 1}], "recipe.base.users[0].name"),
        ("base.mirrors", "address", "recipe.base"),
        ("python.version", 3.13, "recipe.python.version"),
        ("python.target", "opt/python", "recipe.python.target"),
        ("python.target", "/opt/../etc", "recipe.python.target"),
        ("python.requirements", "../lock.txt", "recipe.python.requirements"),
        ("python.requirements", "/lock.txt", "recipe.python.requirements"),
        ("python.exclude", ["sympy"], "recipe.python.exclude"),
        ("files", [{"source": "src"}], "recipe.files[0].target"),
        ("files", {"source": "src"}, "recipe.files"),
        ("config.user", "edgeml", "recipe.config.user"),
        ("config.entrypoint", [], "recipe.config.entrypoint"),
        ("config.environment", {"THREADS": 1}, "recipe.config.environment.THREADS"),
        ("config.exposed_ports", ["8000"], "recipe.config.exposed_ports"),
        ("extra", {}, "recipe"),
    ],
)
def test_names_the_key_that_is_wrong(path: str, value: object, where: str) -> None:
    recipe = copy.deepcopy(RECIPE)
    *sections, key = path.split(".")
    section = recipe
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(FleetError) as raised:
        parse_recipe(recipe)
    assert raised.value.where == where
    assert raised.value.remedy


def test_refuses_what_is_no_mapping() -> None:
    with pytest.raises(FleetError, match="a mapping"):
        parse_recipe(["base"])
