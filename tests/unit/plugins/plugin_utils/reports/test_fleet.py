# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data of the fleet's report: the state of each host, why, what runs, how fast, until when."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.ledger import lines_of_history
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.expected import expected_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.problems import grouped
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.summary import table
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import (
    NOW,
    SERIAL,
    active,
    certificate,
    device,
    digest,
    entry,
    ledger,
    mirror,
    small,
    wanted,
)


def report(hosts: dict[str, dict[str, Any]], lines: Any = ()) -> dict[str, Any]:
    return collect(hosts, list(hosts), "example", lines, NOW)


def only(variables: dict[str, Any], lines: Any = ()) -> dict[str, Any]:
    (host,) = report({"host": variables}, lines)["hosts"]
    return dict(host)


def test_every_state_is_told_with_its_reason() -> None:
    found = report(small(), ledger())
    assert (found["generated"], found["fleet"], found["serial"]) == ("2026-11-28T06:00:00Z", "example", SERIAL)
    assert {host["name"]: (host["state"], host["reason"]) for host in found["hosts"]} == {
        "berlin-camera-1": ("current", ""),
        "berlin-camera-2": (
            "failed",
            f"The release {active(wanted('digits', 'file_type'))['id'][:12]} was refused: "
            "The model digits 1.1.0 misses its objective: p95 6.1 ms, 5 ms allowed",
        ),
        "berlin-gateway-1": (
            "drifted",
            "container edgeml-runtime is not as it was; the container edgeml-runtime does not run",
        ),
        "lyon-camera-1": (
            "unreachable",
            "Failed to connect to the host via ssh: connect to host port 22: No route to host",
        ),
        "lyon-camera-2": ("pending", "digits 1.0.0 int8 becomes 1.1.0 int8"),
    }
    assert found["totals"] == {
        "hosts": {"failed": 1, "drifted": 1, "unreachable": 1, "pending": 1, "current": 1},
        "attention": 5,
    }
    assert json.loads(json.dumps(found)) == found


def test_mirrors_are_compared_with_the_lock() -> None:
    hosts = small() | {"osaka-mirror": mirror("osaka", None), "porto-mirror": mirror("porto")}
    reasons = {"host": ["it cannot be reached: No route to host"]}
    hosts["porto-mirror"] |= {"edgeml_mirrors_comparison": {"unchanged": False, "reasons": reasons}}
    del hosts["porto-mirror"]["edgeml_report_generation"]
    states = {
        one["host"]: (one["serial"], one["state"], one["reason"])
        for site in report(hosts)["sites"]
        for one in site["mirrors"]
    }
    assert states == {
        "berlin-mirror": (7, "current", ""),
        "lyon-mirror": (6, "behind", "it serves serial 6, the lock has 7"),
        "osaka-mirror": (None, "behind", "it serves nothing yet"),
        "porto-mirror": (None, "unreachable", "No route to host"),
    }


def test_machine_may_be_mirror_and_device() -> None:
    found = report({"this_machine": mirror("") | device("")})
    assert [site["mirrors"][0]["host"] for site in found["sites"]] == ["this_machine"]
    assert [host["name"] for host in found["hosts"]] == ["this_machine"]


def test_release_that_is_no_longer_wanted_may_have_been_refused() -> None:
    variables = device("berlin", "failed")
    variables["edgeml_report_expected"]["runtimes"] = [wanted("surface_defects")]
    host = only(variables)
    assert (host["state"], host["reason"]) == (
        "pending",
        "surface_defects 2.3.1 fp32 is new; digits 1.0.0 int8 goes; file_type 1.0.0 goes",
    )


def test_release_that_the_guard_left_failed() -> None:
    variables = device("berlin", "failed")
    (told,) = variables["edgeml_report_releases"]["runtimes"]
    told["history"][-1] |= {"outcome": "rolled_back", "by": "guard", "reason": "it was killed for lack of memory"}
    assert "was rolled back: it was killed for lack of memory" in only(variables)["reason"]
    told["history"].append(entry(told["active"], "active", "2026-11-28T05:00:00Z", by="guard"))
    host = only(variables)
    assert (host["state"], host["drift"]) == ("failed", [])
    assert "was rolled back: it was killed for lack of memory" in host["reason"]


def test_configuration_alone_may_be_pending() -> None:
    variables = device("berlin")
    variables["edgeml_devices_comparison"] = {
        "unchanged": False,
        "reasons": {"inference_runtime": ["the inventory, the lock or the collection says something else"]},
    }
    host = only(variables)
    assert (host["state"], host["drift"]) == ("pending", [])
    assert "says something else" in host["reason"]


def test_host_that_was_never_converged_is_pending() -> None:
    variables = device("berlin")
    line = "no converge has been recorded on this host"
    variables["edgeml_devices_comparison"] = {"unchanged": False, "reasons": {"inference_runtime": [line]}}
    variables["edgeml_report_releases"] = {"runtimes": []}
    host = only(variables)
    assert (host["state"], host["reason"], host["runtimes"]) == (
        "pending",
        f"{line}; digits 1.1.0 int8 is new; file_type 1.0.0 is new",
        [],
    )


def test_runtime_that_does_not_serve_is_drift() -> None:
    variables = device("berlin")
    variables["edgeml_report_releases"]["runtimes"][0]["serving"] = False
    host = only(variables)
    assert (host["state"], host["drift"]) == ("drifted", ["the runtime runtime does not serve"])


@pytest.mark.parametrize(
    ("variable", "answer", "reason"),
    [
        ("edgeml_report_releases", {"failed": True, "msg": "Task failed: none"}, "It cannot tell what runs: none"),
        (
            "edgeml_report_expectation",
            {"failed": True, "msg": "no lock"},
            "The inventory does not say what runs here: no lock",
        ),
        ("edgeml_report_releases", {"unreachable": True, "msg": "timed out"}, "timed out"),
    ],
)  # fmt: skip
def test_host_that_cannot_be_asked_says_why(variable: str, answer: dict[str, Any], reason: str) -> None:
    host = only(device("berlin", "pending") | {variable: answer})
    assert host["reason"] == reason
    assert host["state"] == ("unreachable" if "unreachable" in answer else "failed")
    assert host["problems"][0]["next"]


def test_host_that_cannot_be_compared_has_failed() -> None:
    line = "it cannot be compared: The module interpreter '/usr/bin/python4' was not found"
    comparison = {"unchanged": False, "reasons": {"host": [line]}}
    host = only(device("berlin") | {"edgeml_devices_comparison": comparison})
    assert (host["state"], host["reason"]) == ("failed", line)
    (site,) = report({"m": mirror("berlin") | {"edgeml_mirrors_comparison": comparison}})["sites"]
    assert (site["mirrors"][0]["state"], site["mirrors"][0]["reason"]) == ("failed", line)


def test_host_that_an_earlier_play_lost_is_shown() -> None:
    assert only({"edgeml_site": "berlin"})["state"] == "unreachable"


def test_unreachable_host_is_known_from_the_ledger() -> None:
    hosts = {host["name"]: host for host in report(small(), ledger())["hosts"]}
    host = hosts["lyon-camera-1"]
    (runtime,) = host["runtimes"]
    assert (runtime["since"], runtime["serving"]) == ("2026-10-01T08:00:00Z", None)
    assert [(model["name"], model["version"]) for model in runtime["models"]] == [
        ("digits", "1.0.0"),
        ("file_type", "1.0.0"),
    ]
    assert host["pending_since"] == "2026-11-25T06:00:00Z"
    assert hosts["lyon-camera-2"]["pending_since"] is None


def test_unreachable_host_has_nothing_that_was_removed() -> None:
    had = next(line for line in ledger() if line["host"] == "lyon-camera-1" and line["outcome"] == "active")
    removed = {**had, "outcome": "removed", "time": "2026-11-27T06:00:00Z"}
    host = only(device("lyon", "unreachable"), [{**had, "host": "host"}, {**removed, "host": "host"}])
    assert (host["state"], host["runtimes"]) == ("unreachable", [])


def test_objective_is_judged_by_its_own_protocol() -> None:
    variables = device("berlin", models=("digits",))
    rows = variables["edgeml_report_expected"]["measured"]["latency"]
    rows.insert(0, {"model": "digits", "protocol": "REST", "p50_ms": 9, "p95_ms": 9, "p99_ms": 9})
    (model,) = only(variables)["runtimes"][0]["models"]
    assert (model["protocol"], model["measured"]["p95_ms"], model["met"]) == ("grpc", 1.5, True)
    assert model["measured"]["samples"] == 200
    rows.pop()
    (model,) = only(variables)["runtimes"][0]["models"]
    assert (model["protocol"], model["met"]) == ("rest", False)


def test_missed_objective_is_a_problem_of_a_current_host() -> None:
    host = only(device("berlin", models=("file_type",), share=1.5))
    assert host["state"] == "current"
    (problem,) = host["problems"]
    assert problem["kind"] == "objective"
    assert problem["text"] == "file_type 1.0.0 over grpc: p50 120 ms, 50 ms allowed; p95 150 ms, 100 ms allowed"
    assert "edgeml.fleet.verify --limit host" in problem["next"]


def test_gate_tells_latency_where_nothing_else_measured() -> None:
    variables = device("berlin", models=("digits",))
    variables["edgeml_report_expected"]["measured"] = {}
    (told,) = variables["edgeml_report_releases"]["runtimes"]
    told["history"][0]["gates"] = [
        {"gate": "ready", "model": "", "measured": 1, "allowed": 1, "passed": True},
        {"gate": "p95", "model": "digits", "protocol": "grpc", "measured": 0.21, "allowed": 5.0, "passed": True},
    ]
    (model,) = only(variables)["runtimes"][0]["models"]
    assert (model["measured"], model["met"]) == ({"p95_ms": 0.21, "source": "gate"}, True)
    told["history"] = []
    (model,) = only(variables)["runtimes"][0]["models"]
    assert (model["measured"], model["met"]) == ({}, None)


def test_certificate_in_use_counts_where_the_host_differs() -> None:
    variables = device("berlin", "pending")
    old = certificate(NOW + timedelta(days=3, hours=1))
    variables["edgeml_report_certificate"] = {"content": b64encode(old.encode()).decode()}
    host = only(variables)
    assert {entry["name"]: entry["not_after"][:10] for entry in host["certificates"]} == {
        "server": "2026-12-01",
        "authority": "2059-12-31",
    }
    assert "server certificate ends in 3 days, on 2026-12-01" in [problem["text"] for problem in host["problems"]]


def test_certificate_that_has_ended_or_cannot_be_read() -> None:
    host = only(device("berlin", ends=datetime(2026, 11, 1, tzinfo=UTC)))
    assert host["problems"][0]["text"] == "server certificate has ended, on 2026-11-01"
    variables = device("berlin")
    variables["edgeml_report_expected"]["certificates"] = [{"name": "server", "text": "not a certificate"}]
    assert only(variables)["certificates"] == []


@pytest.mark.parametrize(
    ("address", "changes", "target"),
    [
        ("0.0.0.0:8002", {}, "192.0.2.10:8002"),
        ("0.0.0.0:8002", {"ansible_host": "2001:db8::1"}, "[2001:db8::1]:8002"),
        ("198.51.100.7:9000", {}, "198.51.100.7:9000"),
        ("127.0.0.1:8002", {}, None),
        ("127.0.0.1:8002", {"ansible_connection": "local"}, "127.0.0.1:8002"),
        ("unix:/run/edgeml/metrics.sock", {}, None),
    ],
)
def test_metrics_are_scraped_where_they_can_be_reached(address: str, changes: dict[str, Any], target: str) -> None:
    variables = device("berlin") | changes
    variables["edgeml_report_expected"]["runtimes"][0]["metrics"] = [address]
    assert [one["address"] for one in only(variables)["targets"]] == ([target] if target else [])


def test_ledger_and_histories_make_one_list_of_events() -> None:
    release = active(wanted("digits", "file_type"))
    line = {"host": "host", "site": "berlin", **entry(release, "active", "2026-11-20T04:30:00Z"), "rollout": "r1"}
    step = {"host": "", "outcome": "rollout_started", "time": "2026-11-20T04:00:00Z", "rollout": "r1"}
    events = report({"host": device("berlin")}, [step, line])["ledger"]
    assert [(event["host"], event["outcome"]) for event in events] == [("host", "active")]
    assert len(report({f"h{n}": device("berlin") for n in range(90)})["ledger"]) == 50


@pytest.mark.parametrize("wrong", ["1970-01-01T00:01:00Z", "2040-05-05T05:05:05Z"])
def test_a_device_whose_clock_is_wrong(wrong: str) -> None:
    release = active(wanted("digits", "file_type"))
    variables = device("berlin")
    (runtime,) = variables["edgeml_report_releases"]["runtimes"]
    tried = {**entry(release, "active", wrong), "place": "1f0c9a2e-000001", "runtime": runtime["name"]}
    runtime |= {"active": release, "since": wrong, "history": [tried]}
    heard = "2026-11-20T04:30:00Z"
    lines = lines_of_history("host", "berlin", [runtime], heard=heard)
    found = report({"host": variables}, lines)
    assert [one["since"] for one in found["hosts"][0]["runtimes"]] == [heard]
    assert [event["time"] for event in found["ledger"]] == [heard]


def test_models_are_expected_with_their_objectives_and_nothing_secret() -> None:
    placed: list[dict[str, Any]] = [
        {"name": "digits", "slo": {"p95_ms": 25, "protocol": "rest"}, "requires": {"environment": {"KEY": "secret"}}},
        {"name": "file_type"},
    ]
    resolved = [
        {"name": model["name"], "version": "1.0.0", "variant": "fp32", "digest": digest("x"), "size": 1}
        for model in placed
    ]
    releases = [{"name": "runtime", "listen": {"metrics": ["0.0.0.0:8002"]}, "server": None, "models": resolved}]
    (runtime,) = expected_models(placed, releases, True)
    assert runtime["tls"]
    assert [(model["protocol"], model["objective"]) for model in runtime["models"]] == [
        ("rest", {"p95_ms": 25.0}),
        ("grpc", {}),
    ]
    assert "secret" not in json.dumps(runtime)
    assert not expected_models(placed, [{**releases[0], "server": {"rest_port": 1}}], True)[0]["tls"]


def test_equal_problems_of_many_hosts_are_one() -> None:
    hosts = {f"camera-{n}": device("berlin", "unreachable", reason=f"ssh: connect to 192.0.2.{n}") for n in range(9)}
    hosts |= {f"slow-{n}": device("lyon", models=("digits",), share=1.1 + n / 10) for n in range(3)}
    hosts |= {"wait": device("lyon", "pending")}
    groups = grouped(report(hosts))
    assert [(group["kind"], len(group["hosts"]), group["varies"]) for group in groups] == [
        ("objective", 3, True),
        ("unreachable", 9, True),
        ("pending", 1, False),
    ]


def test_table_is_short_and_safe_for_a_terminal() -> None:
    hosts = small()
    hosts["berlin-camera-2"] = device("berlin", "failed", reason="\x1b[31mred\x07\nsecond " + "x" * 500)
    shown = table(report(hosts, ledger()))
    assert shown.startswith("Fleet example, lock serial 7: 1 of 5 hosts are what the inventory says\n")
    assert "  berlin  3      1        -        -            1        1       current, serial 7" in shown
    assert "\x1b" not in shown and "\x07" not in shown
    assert max(map(len, shown.splitlines())) < 240
    many = {f"h{n}": device("berlin", "drifted", reason="abcdefghijklmnopqrstuvwxyz"[n]) for n in range(26)}
    assert len(table(report(many)).splitlines()) < 30
