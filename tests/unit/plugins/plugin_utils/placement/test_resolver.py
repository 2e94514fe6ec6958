# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Catalogue, rules, overrides and hosts to what a host runs."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, report
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import (
    Catalogue,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import Request, Resolver, resolve_host
from ansible_collections.edgeml.fleet.tests.support.catalogue import DIGITS, PLAIN, RUNTIMES

SMALL_BOARD = Host("board", "arm64", 1024)


def resolve(
    settings: dict[str, Any] | None = None,
    override: dict[str, Any] | None = None,
    *,
    models: list[dict[str, Any]] | None = None,
    host: Host = SMALL_BOARD,
    final: bool = True,
) -> tuple[list[dict[str, Any]], list[Problem]]:
    catalogue = Catalogue(models or [DIGITS, PLAIN], RUNTIMES)
    request = Request("digits", settings or {}, ("placement", 0))
    return Resolver(catalogue, {}, final=final).models([request], {"digits": override or {}}, host)


def test_override_goes_before_rule_and_rule_before_catalogue() -> None:
    (item,), problems = resolve(
        {"slo": {"p95_ms": 40}, "requires": {"packages": []}, "runtime": "vision"},
        {"slo": {"p95_ms": 100}, "options": {"batching": {"max_size": 4}}},
    )
    assert problems == []
    assert item == {
        "name": "digits",
        "version": "1.0.0",
        "variant": "int8",
        "runtime": "vision",
        "requires": {"memory_mb": 300, "packages": []},
        "protocols": ["rest", "grpc"],
        "options": {"batching": {"max_size": 4}},
        "slo": {"p95_ms": 100, "protocol": "grpc"},
        "shadow": {},
    }


def test_shadow_is_merged_as_objectives_are() -> None:
    catalogue = [{**DIGITS, "shadow": {"share": 0.1, "seconds": 30}}, PLAIN]
    (item,), problems = resolve({"shadow": {"share": 0.5}}, {"shadow": {"requests": 50}}, models=catalogue)
    assert problems == []
    assert item["shadow"] == {"share": 0.5, "seconds": 30, "requests": 50}


def test_an_override_takes_an_objective_back() -> None:
    (item,), problems = resolve({}, {"slo": {"p95_ms": None}})
    assert problems == []
    assert item["slo"] == {"p95_ms": None, "protocol": "grpc"}


def test_what_is_resolved_resolves_to_itself() -> None:
    for variables in ({"edgeml_architecture": "arm64", "edgeml_memory_mb": 1024}, {"edgeml_architecture": "amd64"}):
        models: list[dict[str, Any]] = [{"name": "digits", "slo": {"p95_ms": 40}}, {"name": "sound"}]
        overrides = {"digits": {"protocols": ["grpc", "mqtt"]}}
        first, problems = resolve_host("board", variables, [DIGITS, PLAIN], models, overrides, RUNTIMES)
        assert problems == []
        again, problems = resolve_host("board", variables, [DIGITS, PLAIN], first, overrides, RUNTIMES)
        assert (again, problems) == (first, [])


def test_a_model_that_is_off_is_not_there() -> None:
    assert resolve(override={"enabled": False}) == ([], [])


def test_another_version_brings_its_own_settings() -> None:
    newer = {**PLAIN, "name": "digits", "version": "1.1.0", "slo": {"p95_ms": 10}}
    (old,), _ = resolve({"version": "1.0.0", "options": {"isolated": True}}, models=[DIGITS, newer])
    settings = {key: value for key, value in old.items() if key != "name"}
    (item,), problems = resolve(settings, {"version": "1.1.0"}, models=[DIGITS, newer])
    assert problems == []
    assert (item["version"], item["variant"], item["requires"]) == ("1.1.0", "default", {})
    assert item["slo"] == {"p95_ms": 10}
    assert item["options"] == {"isolated": True}


def test_unknown_awaits_the_role_which_says_what_is_missing() -> None:
    host = Host("board", "arm64")
    (item,), problems = resolve(host=host, final=False)
    assert problems == [] and "variant" not in item
    items, problems = resolve(host=host)
    assert items == []
    assert [
        word for word in ("memory_mb not known", "edgeml_memory_mb", "host board") if word not in report(problems)
    ] == []


@pytest.mark.parametrize(
    ("settings", "override", "words"),
    [
        ({"version": "1.0.1"}, {}, ["no such version", "placement[0].version", "1.0.0"]),
        ({"variant": "int4"}, {}, ["no such variant", "placement[0].variant", "int8, fp32", "did you mean int8"]),
        (
            {"runtime": "vison"},
            {},
            ["names a runtime that does not exist", "placement[0].runtime", "did you mean vision"],
        ),
        ({}, {"runtime": "vison"}, ["edgeml_model_overrides.digits.runtime", "'vison'"]),
        ({}, {"version": "3.0.0"}, ["edgeml_model_overrides.digits.version", "'3.0.0'"]),
        ({"slo": {"protocol": "rest"}}, {"protocols": ["grpc"]}, ["cannot be measured", "'rest'"]),
    ],
)
def test_what_a_rule_or_an_override_gets_wrong(
    settings: dict[str, Any], override: dict[str, Any], words: list[str]
) -> None:
    items, problems = resolve(settings, override)
    assert items == []
    assert [word for word in [*words, "host board"] if word not in report(problems)] == []


def test_several_versions_need_one_to_be_named() -> None:
    items, problems = resolve(models=[DIGITS, {**DIGITS, "version": "1.1.0"}])
    assert items == []
    assert "1.0.0, 1.1.0" in report(problems)


def test_no_variant_fits() -> None:
    model = {**DIGITS, "variants": DIGITS["variants"][:1]}
    items, problems = resolve(models=[model], host=Host("server", "amd64", 9000), final=False)
    assert items == []
    assert [w for w in ("host server", "'amd64'", "9000", "int8 when") if w not in report(problems)] == []


def test_the_same_problem_of_many_hosts_is_one_line() -> None:
    text = report(Problem("Bad", hosts=(f"h{index}",)) for index in range(1000))
    assert text.splitlines() == [text]
    assert "h0" in text and "and 980 more" in text
