# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One table for the fleet."""

from __future__ import annotations

from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.preflight import (
    collect,
    refused,
    table,
    waiting,
    why_refused,
)


def finding(name: str, severity: str = "refuse", value: str = "seen") -> dict[str, str]:
    return {"name": name, "severity": severity, "value": value, "need": "something else", "remedy": "mend it"}


def result(*findings: dict[str, str]) -> dict[str, Any]:
    return {"findings": list(findings), "changed": False}


def test_refusals_of_all_hosts_come_first() -> None:
    hostvars = {
        "a": {"inference_runtime_preflight": result(finding("clock", "warn"))},
        "b": {"inference_runtime_preflight": result(finding("port"), finding("disk_space"))},
        "c": {"inference_runtime_preflight": result()},
        "d": {},
    }
    found = collect(hostvars, list(hostvars))
    assert [(entry["host"], entry["name"]) for entry in found] == [("b", "port"), ("b", "disk_space"), ("a", "clock")]
    assert refused(found) == ["b"]


def test_only_hosts_of_the_play_are_read() -> None:
    hostvars = {"a": {"inference_runtime_preflight": result(finding("port"))}}
    assert collect(hostvars, []) == []


def test_a_host_in_two_groups_has_one_line_for_one_fault() -> None:
    both = {"site_mirror_preflight": result(finding("clock")), "inference_runtime_preflight": result(finding("clock"))}
    assert len(collect({"a": both}, ["a"])) == 1


def test_a_mirror_that_is_brought_up_first_is_no_obstacle() -> None:
    device = {"inference_runtime_preflight": result(finding("registry"), finding("content"), finding("port"))}
    mirror = {"site_mirror_preflight": result()}
    alone = collect({"device": device}, ["device"])
    assert {entry["severity"] for entry in alone} == {"refuse"}
    hostvars = {"device": device | {"edgeml_site": "berlin"}, "mirror": mirror | {"edgeml_site": "berlin"}}
    severities = {entry["name"]: entry["severity"] for entry in collect(hostvars, list(hostvars))}
    assert severities == {"registry": "warn", "content": "warn", "port": "refuse"}
    hostvars["mirror"]["edgeml_site"] = "paris"
    assert {entry["severity"] for entry in collect(hostvars, list(hostvars))} == {"refuse"}


def test_devices_of_a_rollout_wait_for_their_mirror() -> None:
    device = {"inference_runtime_preflight": result(finding("registry", value="no route"), finding("clock", "warn"))}
    away = {"site_mirror_preflight": result(finding("unreachable", "warn"))}
    hostvars = {"device": device | {"edgeml_site": "berlin"}, "mirror": away | {"edgeml_site": "berlin"}}
    for hosts in (["device"], ["device", "mirror"]):
        found = collect(hostvars, hosts, waits=True)
        assert waiting(found) == {"device": "no route"}
        assert refused(found) == []
    # One that is brought up first is not waited for, and waiting excuses nothing else.
    hostvars["mirror"]["site_mirror_preflight"] = result()
    assert waiting(collect(hostvars, list(hostvars), waits=True)) == {}
    device["inference_runtime_preflight"] = result(finding("content"), finding("port"))
    assert refused(collect({"device": device}, ["device"], waits=True)) == ["device"]
    assert waiting(collect(hostvars | {"device": device}, ["device"])) == {}


def test_a_store_that_a_mirror_cannot_reach_is_an_obstacle() -> None:
    mirror = {"site_mirror_preflight": result(finding("registry"))}
    assert refused(collect({"mirror": mirror}, ["mirror"])) == ["mirror"]


def test_options_that_cannot_be_made_are_a_line_of_the_table() -> None:
    failed = {"failed": True, "msg": "Task failed: 'edgeml_registry' is undefined"}
    found = collect({"a": {"inference_runtime_preflight": failed}}, ["a"])
    assert (found[0]["name"], found[0]["value"]) == ("inventory", "'edgeml_registry' is undefined")


def test_a_task_that_was_skipped_found_nothing() -> None:
    assert collect({"a": {"inference_runtime_preflight": {"skipped": True, "changed": False}}}, ["a"]) == []


def test_columns_are_aligned_whatever_the_values_hold() -> None:
    found = collect(
        {
            "berlin-1": {"inference_runtime_preflight": result(finding("port", value="a\nb"))},
            "b": {"inference_runtime_preflight": result(finding("clock", "warn", "{{ secret }}"))},
        },
        ["berlin-1", "b"],
    )
    lines = table(found).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["host", "finding", "value", "need", "remedy"]
    assert {line.index("mend it") for line in lines[1:]} == {lines[0].index("remedy")}
    assert "{{ secret }}" in lines[2]


def test_no_finding_no_table() -> None:
    assert table([]) == ""


def test_a_name_that_no_device_knows_is_misspelt() -> None:
    unknown = {"inference_runtime_preflight": result(finding("name_resolution"))}
    lacking = {"inference_runtime_preflight": result(finding("registry"))}
    gone = {"inference_runtime_preflight": result(finding("unreachable"))}
    found = collect({"a": unknown, "b": unknown, "c": gone}, ["a", "b", "c"], waits=True)
    assert refused(found) == ["a", "b"]
    assert "no device of this run knows the name" in found[0]["remedy"]
    assert waiting(found) == {"c": "seen"}
    # Where the mirror is away, its site's name service may not know it.
    lost = {"edgeml_mirrors_comparison": {"reasons": {"host": ["it cannot be reached"]}}}
    assert refused(collect({"a": unknown, "mirror": lost}, ["a"], waits=True)) == []
    # One knows it: the others have a fault of their own, and wait.
    assert refused(collect({"a": unknown, "b": lacking}, ["a", "b"], waits=True)) == []


def test_each_refused_host_has_its_reasons() -> None:
    variables = {"inference_runtime_preflight": result(finding("disk_space"), finding("memory"))}
    found = collect({"a": variables, "b": {}}, ["a", "b"])
    assert why_refused(found) == {"a": "disk_space: seen; memory: seen"}
