# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.verify import collect, table, why

MODEL = {"name": "digits", "version": "1.0.0", "variant": "default", "digest": "sha256:" + "0" * 64}
OTHER = {**MODEL, "version": "1.1.0", "variant": "int8", "digest": "sha256:" + "1" * 64}
WRONG = {"case": "x", "passed": False}
CASES = [{"case": "one", "passed": True}, {"case": "two", "passed": True}]


def device(**changes: Any) -> dict[str, Any]:
    """Return the variables of a device with which all is well, or with changes."""
    item = {"endpoint": "grpcs://127.0.0.1:8001", "models": []}
    health = {"item": item, "models": [{"name": "digits", "version": "1.0.0", "ready": True, "golden": CASES}]}
    latency = {
        "item": item,
        "models": [{"name": "digits", "p50_ms": 1.0, "p95_ms": 1.234, "p99_ms": 2.0, "samples": 200, "met": True}],
    }
    return {
        "edgeml_devices_comparison": {"unchanged": True, "reasons": {}},
        "edgeml_verify_expected": {"runtimes": [{"name": "runtime", "models": [MODEL]}]},
        "edgeml_verify_expectation": {"changed": False},
        "edgeml_verify_releases": {"runtimes": [{"name": "runtime", "active": {"models": [MODEL]}, "drift": []}]},
        "inference_runtime_health": {"results": [health]},
        "inference_runtime_latency": {"results": [latency, {"skipped": True, "item": item}]},
        "edgeml_site": "berlin",
        **changes,
    }


def releases(*models: dict[str, Any], drift: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"runtimes": [{"name": "runtime", "active": {"models": list(models)}, "drift": list(drift)}]}


def failed(**answer: Any) -> dict[str, Any]:
    return {"results": [{"item": {"endpoint": "https://127.0.0.1:8000"}, "failed": True, **answer}]}


def reasons(**lines: list[str]) -> dict[str, Any]:
    return {"edgeml_devices_comparison": {"unchanged": False, "reasons": lines}}


def test_all_is_well() -> None:
    report = collect({"a": device(), "b": device()}, ["a", "b"])
    assert report["passed"]
    assert report["totals"] == {"passed": 2, "failed": 0}
    assert report["hosts"][0]["models"] == [
        {"name": "digits", "protocol": "grpc", "version": "1.0.0", "cases": 2, "passed": 2, "p50_ms": 1.0,
         "p95_ms": 1.234, "p99_ms": 2.0, "samples": 200, "met": True}
    ]  # fmt: skip
    text = table(report)
    assert "Verified 2 devices: 2 passed, 0 did not" in text
    assert text.splitlines()[2].split()[:7] == ["a", *["ok"] * 6]
    assert "1.23 ms (digits over grpc)" in text


@pytest.mark.parametrize(
    ("changes", "checks", "words"),
    [
        (reasons(host=["it cannot be reached: timed out"]), ["reachable"], "timed out"),
        ({"edgeml_verify_releases": {"unreachable": True, "msg": "reset"}}, ["reachable"], "cannot be reached: reset"),
        ({"edgeml_verify_expectation": {"failed": True, "msg": "no lock"}}, ["digests"], "no lock"),
        ({"edgeml_verify_releases": {"failed": True, "msg": "no Docker"}}, ["health", "digests"], "no Docker"),
        ({"inference_runtime_health": failed(msg="it does not answer")}, ["health"], "it does not answer"),
        (
            {"inference_runtime_health": failed(models=[{"name": "digits", "golden": [WRONG]}])},
            ["answers"],
            "1 golden cases are answered otherwise than expected: x",
        ),
        ({"inference_runtime_latency": failed(failures=["p95 31 ms"], msg="p95 31 ms")}, ["latency"], "p95 31 ms"),
        (
            {"edgeml_verify_releases": releases(OTHER)},
            ["digests"],
            "digits 1.1.0 int8 (111111111111) is served, the inventory says 1.0.0 (000000000000)",
        ),
        ({"edgeml_verify_releases": {"runtimes": []}}, ["digests"], "digits 1.0.0 (000000000000) is not served"),
        (
            {"edgeml_verify_expected": {"runtimes": []}},
            ["digests"],
            "digits 1.0.0 (000000000000) is served, the inventory does not have it here",
        ),
        (reasons(inference_runtime=["/etc/hosts lacks a line"]), ["drift"], "/etc/hosts lacks a line"),
        ({"edgeml_verify_releases": releases(MODEL, drift=("it is stopped",))}, ["drift"], "runtime: it is stopped"),
    ],
)
def test_each_fault_fails_its_check_and_no_other(changes: dict[str, Any], checks: list[str], words: str) -> None:
    report = collect({"a": device(**changes)}, ["a"])
    (host,) = report["hosts"]
    assert [finding["check"] for finding in host["findings"]] == checks
    assert words in why(host)
    assert not report["passed"]
    assert f"  {checks[0]}: a: " in table(report)


def test_a_host_that_cannot_be_compared_does_not_pass() -> None:
    line = "it cannot be compared: The module interpreter '/usr/bin/python4' was not found"
    unasked = {"edgeml_verify_releases": {"skipped": True}, "inference_runtime_health": {"results": []}}
    report = collect({"a": device(**reasons(host=[line]), **unasked, edgeml_verify_expected={"runtimes": []})}, ["a"])
    assert (report["passed"], why(report["hosts"][0])) == (False, line)
    assert table(report).splitlines()[2].split()[:7] == ["a", "ok", "-", "-", "-", "-", "no"]


def test_what_nobody_asked_is_not_said_to_be_well() -> None:
    """As in check mode, which sends no load."""
    skipped = {"results": [{"skipped": True}]}
    report = collect({"a": device(inference_runtime_health=skipped, inference_runtime_latency=skipped)}, ["a"])
    assert table(report).splitlines()[2].split()[:7] == ["a", "ok", "-", "-", "ok", "-", "ok"]


def test_what_the_inventory_has_changed_since_is_no_drift() -> None:
    """That another setting is to come is for plan to tell; what is served is what verify judges."""
    changed = reasons(inference_runtime=["the inventory, the lock or the collection says something else"])
    assert collect({"a": device(**changed)}, ["a"])["passed"]


def test_the_same_fault_of_many_hosts_is_one_line() -> None:
    hosts = {f"h{number}": device(edgeml_verify_releases=releases(OTHER)) for number in range(30)}
    text = table(collect(hosts, list(hosts)))
    assert "digests: h0, h1, h2, h3, h4, h5 and 24 more: digits 1.1.0" in text


def test_what_computes_a_model_is_said_where_it_is_not_everywhere_the_processor() -> None:
    def computed_by(provider: str) -> dict[str, Any]:
        model = {"name": "digits", "ready": True, "golden": CASES, "provider": provider}
        return device(inference_runtime_health={"results": [{"item": {"endpoint": "grpcs://h:1"}, "models": [model]}]})

    report = collect({"a": computed_by("CUDA"), "b": computed_by("CPU"), "c": computed_by("CUDA")}, ["a", "b", "c"])
    assert [host["models"][0]["provider"] for host in report["hosts"]] == ["CUDA", "CPU", "CUDA"]
    assert report["passed"]
    assert "note: a, c: CUDA computes digits\n  note: b: CPU computes digits" in table(report)
    assert "computes" not in table(collect({"b": computed_by("CPU")}, ["b"]))


def test_what_nothing_checks_is_said_and_passes() -> None:
    health = {
        "item": {"endpoint": "grpcs://127.0.0.1:8001"},
        "models": [{"name": "digits", "ready": True, "golden": []}],
    }
    report = collect({"a": device(inference_runtime_health={"results": [health]}), "b": device()}, ["a", "b"])
    assert report["passed"]
    assert "note: a: nothing checks the answers of digits: it has no golden cases" in table(report)
