# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import report
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import (
    Catalogue,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import (
    Host,
    describe_host,
    oci_architecture,
    without_templates,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.variants import choose_variant

PLAIN: dict[str, Any] = {"name": "sound", "version": "2.0.0", "platform": "python", "source": "models/sound"}
ASKING = Catalogue(
    [
        {
            **PLAIN,
            "variants": [
                {"name": "a", "file": "a", "when": {"min_memory_mb": 1, "cpu_features": ["x"]}},
                {"name": "b", "file": "b", "when": {"accelerator": "y", "variables": {"line": 3}}},
            ],
        }
    ],
    None,
)


def test_host_variable_goes_before_preflight_and_preflight_before_facts() -> None:
    facts = {"architecture": "x86_64", "memtotal_mb": 3000}
    learned = {"architecture": "aarch64", "cpu_features": ["asimd"], "accelerator": ""}
    variables = {"edgeml_memory_mb": 2000, "edgeml_host": learned}
    host, problems = describe_host("h", ["devices"], variables, lambda: facts, ASKING)
    assert problems == []
    assert (host.architecture, host.memory_mb, host.accelerator) == ("arm64", 2000, "")
    assert host.cpu_features == frozenset({"asimd"})
    assert describe_host("h", [], {}, lambda: facts, ASKING)[0] == Host("h", "amd64", 3000)


def test_nonsense_that_a_host_says_of_itself_is_not_known() -> None:
    attack = "{{ lookup('pipe', 'id') }}"
    facts = {"architecture": attack, "memtotal_mb": "many", "edgeml_host": {"cpu_features": 3, "accelerator": [attack]}}
    assert describe_host("h", [], {}, lambda: facts, ASKING) == (Host("h"), [])


def test_templates_are_not_known() -> None:
    variables = {"edgeml_architecture": "{{ lookup('pipe', 'uname -m') }}", "line": "{{ x }}"}
    host, problems = describe_host("h", [], variables, dict, ASKING)
    assert problems == []
    assert (host.architecture, dict(host.variables), host.unknown) == (None, {}, frozenset({"line"}))
    model = {"variants": [{"name": "one", "when": {"variables": {"line": 3}}}]}
    assert choose_variant(model, host) == (None, ["line"])
    assert without_templates({"slo": {"p95_ms": "{{ x }}"}, "variant": "int8"}) == {"slo": {}, "variant": "int8"}


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("edgeml_architecture", "arm46", ["'arm46'", "did you mean arm64"]),
        ("edgeml_memory_mb", "lots", ["edgeml_memory_mb", "'lots'"]),
        ("edgeml_cpu_features", "avx2", ["edgeml_cpu_features", "list of text"]),
        ("edgeml_accelerator", 3, ["edgeml_accelerator", "3 (number)"]),
    ],
)
def test_wrong_host_variables(variable: str, value: Any, words: list[str]) -> None:
    _, problems = describe_host("h", [], {variable: value}, dict, ASKING)
    assert [word for word in [*words, "host h"] if word not in report(problems)] == []


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [("x86_64", "amd64"), ("amd64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")],
)
def test_architecture_names(machine: str, architecture: str) -> None:
    assert oci_architecture(machine) == architecture


def test_unknown_architecture() -> None:
    with pytest.raises(FleetError, match="riscv64"):
        oci_architecture("riscv64")
