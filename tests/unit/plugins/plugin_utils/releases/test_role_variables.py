# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each variable of a role is held against its specification before a host is touched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.role_variables import (
    role_options,
    variable_problems,
)

ROOT = Path(__file__).parents[5]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("inference_runtime_log_level", "verbose", "use one of debug, info, warning, error"),
        ("inference_runtime_memory_mb", -4, "at least 0"),
        ("inference_runtime_base_memory_mb", -100, "at least 0"),
        ("inference_runtime_base_memory_mb", "lots", "give a whole number"),
        ("inference_runtime_directory", "data/x", "give an absolute path"),
        ("inference_runtime_directory", "", "give an absolute path"),
        ("inference_runtime_directory", None, "give a path"),
        ("inference_runtime_rest_port", 0, "at least 1 and at most 65535"),
        ("inference_runtime_rest_port", 70000, "at least 1 and at most 65535"),
        ("inference_runtime_rest_port", "-1", "at least 1 and at most 65535"),
        ("inference_runtime_rest_port", "http", "give a whole number"),
        ("inference_runtime_rest_port", None, "give a whole number"),
        ("inference_runtime_rest_port", [8000], "give a whole number"),
        ("inference_runtime_start_timeout", "2m", "give a whole number"),
        ("inference_runtime_start_timeout", -5, "at least 1"),
        ("inference_runtime_drain_seconds", "10s", "give a whole number"),
        ("inference_runtime_drain_seconds", 3601, "at most 3600"),
        ("inference_runtime_objective_minutes", "nan", "at least 0"),
        ("inference_runtime_verify_samples", "many", "give a whole number"),
        ("inference_runtime_verify_samples", -1, "at least 1"),
        ("inference_runtime_server_name", ["a"], "give text"),
        ("inference_runtime_tls_key_file", None, "give text"),
        ("edgeml_accept_older_lock", "nope", "give true or false"),
        ("edgeml_preflight_ignore", ["certificat"], "did you mean certificate"),
        ("edgeml_preflight_ignore", None, "give a list"),
        ("edgeml_architectures", [], "name at least one architecture"),
        ("edgeml_architectures", ["x86_64"], "use one of amd64, arm64"),
        ("site_mirror_port", "abc", "give a whole number"),
        ("site_mirror_port", 99999, "at most 65535"),
        ("docker_engine_configuration", "x", "give a mapping"),
        ("inference_runtime_listen_address", "127.0.0.300", "give an IP address of the host"),
        ("inference_runtime_listen_address", None, "give text"),
        ("site_mirror_listen_address", "", "give an IP address of the host"),
        ("edgeml_mirror_ip_address", "mirror.example", "give an IP address"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_is_allowed(name: str, value: Any, words: str) -> None:
    (problem,) = variable_problems({name: value})
    assert problem.path == (name,)
    assert words in problem.remedy
    assert problem.seen.startswith("(not shown" if name.endswith("key_file") else repr(value)[:70])


@pytest.mark.parametrize(
    "variables",
    [
        {"inference_runtime_rest_port": "8000", "inference_runtime_memory_mb": "0", "site_mirror_mbit": "2.5"},
        {"edgeml_accept_older_lock": "yes", "inference_runtime_log_requests": "false"},
        {"edgeml_preflight_ignore": "clock,memory", "docker_engine_packages": "docker.io"},
        {"inference_runtime_runtimes": None, "site_mirror_pinned": [{"name": "digits"}]},
        {"edgeml_registry": "registry:5443", "edgeml_store": 5, "edgeml_mirror_ip_address": ""},
        {
            "site_mirror_listen_address": "[::]",
            "model_store_listen_address": "localhost",
            "edgeml_store_ip_address": "::1",
        },
        {"edgeml_own": None, "ansible_host": "x", "inventory_hostname": "a"},
    ],
)
def test_what_ansible_converts_goes_on_working(variables: dict[str, Any]) -> None:
    assert variable_problems(variables) == []


def test_every_default_is_allowed() -> None:
    defaults = {name: option["default"] for name, option in role_options().items() if "default" in option}
    assert len(defaults) > 50
    assert variable_problems(defaults) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("edgeml_model_override", "edgeml_model_overrides"),
        ("edgeml_sit", "edgeml_site"),
        ("edgeml_mirror_ip_adress", "edgeml_mirror_ip_address"),
        ("edgeml_preflight_ignor", "edgeml_preflight_ignore"),
        ("edgeml_rolout", "edgeml_rollout"),
        ("site_mirror_listen_adress", "site_mirror_listen_address"),
        ("docker_engine_package", "docker_engine_packages"),
        ("model_store_listen_adress", "model_store_listen_address"),
    ],
)
def test_a_mistyped_name_is_told_with_the_right_one(name: str, meant: str) -> None:
    (problem,) = variable_problems({name: "x"})
    assert problem.path == (name,)
    assert f"did you mean {meant}" in problem.remedy


def test_other_names_are_left_alone() -> None:
    own = ["edgeml_foo", "edgeml_city", "edgeml_forge", "site_name", "my_edgeml_sit", "model_storage", "edgemlsite"]
    used = ["edgeml_host", "edgeml_placed_models", "edgeml_preflight_judged", "site_mirror_preflight", "edgeml_force"]
    assert variable_problems(dict.fromkeys([*own, *used], "x")) == []


class Hostvars(Mapping[str, Any]):
    """What Ansible computes when it is read."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        raise AnsibleError("needs a default of the role")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_a_secret_text_is_not_even_read() -> None:
    variables = Hostvars("site_mirror_port", "edgeml_store_password", "edgeml_signing_key_passphrase", "own_port")
    assert variable_problems(variables) == []
    assert variables.read == ["site_mirror_port"]


@pytest.mark.parametrize(
    "name", ["model_store_pull_accounts", "model_store_source_credentials", "site_mirror_fallbacks"]
)
def test_a_secret_in_the_wrong_place_is_in_no_message(name: str) -> None:
    (problem,) = variable_problems({name: "S3CRETxyz"})
    assert name in str(problem)
    assert "S3CRET" not in str(problem)


def test_what_can_be_ignored_is_what_preflight_finds() -> None:
    table = (ROOT / "docs" / "preflight.md").read_text().partition("## Findings")[2]
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(role_options()["edgeml_preflight_ignore"]["choices"])
