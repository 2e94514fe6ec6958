# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet: what is collected from the answers of its hosts, and how it is shown."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.plan import (
    bill,
    collect,
    markdown,
    readable_size,
    readable_time,
    table,
)

IMAGE = "registry.edgeml.internal:5443/edgeml/runtime@sha256:"


def release(**changes: Any) -> dict[str, Any]:
    plan = {
        "runtime": "runtime",
        "action": "none",
        "faults": [],
        "image": None,
        "models": [],
        "settings": [],
        "bytes": {"image": 0, "models": 0},
        "removed_runtimes": [],
        **changes,
    }
    return {"changed": plan["action"] != "none", "plan": plan}


def model(version: str, digest: str, variant: str = "default") -> dict[str, Any]:
    return {"version": version, "variant": variant, "digest": "sha256:" + digest * 64, "options": {}}


CHANGED = release(
    action="restart",
    image={"before": IMAGE + "a" * 64, "after": IMAGE + "b" * 64},
    models=[
        {"name": "digits", "before": model("1.0.0", "c"), "after": model("1.1.0", "d", "int8")},
        {"name": "faces", "before": None, "after": model("2.0.0", "e")},
        {"name": "sounds", "before": model("1.0.0", "f"), "after": None},
    ],
    settings=[{"key": "engine.threads", "before": 1, "after": 2}],
    bytes={"image": 40_000_000, "models": 10_000_000},
)
MIRROR = {
    "plan": {
        "action": "sync",
        "generation": {"before": 2, "after": 3},
        "blobs": 4,
        "bytes": 25_000_000,
        "removed_blobs": 1,
    }
}
SERVER = {"action": "start", "before": None, "after": "store:5000/edgeml/mirror@sha256:" + "9" * 64, "bytes": 5_000_000}
BERLIN = {"edgeml_site": "berlin", "edgeml_site_uplink_mbit": 8, "edgeml_site_lan_mbit": "100"}
FRAME = (
    "Finalization of task args for 'edgeml.fleet.runtime_release' failed: Error while resolving value for 'image': "
    "The filter plugin 'edgeml.fleet.host_models' failed: "
)
FLEET: dict[str, dict[str, Any]] = {
    "berlin-mirror": {**BERLIN, "site_mirror_result": MIRROR, "site_mirror_plan": SERVER},
    "berlin-1": {
        **BERLIN,
        "inference_runtime_result": CHANGED,
        "docker_engine_plan": {"action": "install"},
        "inference_runtime_kernel": {
            "plan": [
                {"kind": "module", "name": "v4l2loopback", "before": "not loaded", "after": "loaded"},
                {"kind": "sysctl", "name": "vm.swappiness", "before": "60", "after": "10"},
            ]
        },
        "system_packages_plan": {"docker_engine": {"install": ["docker.io"]}, "model": {"remove": ["libgomp1"]}},
    },
    "berlin-2": {**BERLIN, "inference_runtime_result": release()},
    "berlin-3": dict(BERLIN),
    "paris-1": {
        "group_names": ["devices", "site_paris"],
        "inference_runtime_result": {"results": [release(), release(runtime="vision", action="start")]},
    },
    "paris-2": {"edgeml_site": "paris", "inference_runtime_result": {"failed": True, "msg": f"{FRAME}Port 22"}},
}


@pytest.fixture
def report() -> dict[str, Any]:
    return collect(FLEET, list(FLEET))


def host(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [host for site in report["sites"] for host in site["hosts"] if host["name"] == name]
    return dict(found)


def test_hosts_are_grouped_by_site_and_judged(report: dict[str, Any]) -> None:
    assert [site["name"] for site in report["sites"]] == ["berlin", "paris"]
    assert {name: host(report, name)["state"] for name in FLEET} == {
        "berlin-mirror": "changed",
        "berlin-1": "changed",
        "berlin-2": "unchanged",
        "berlin-3": "unknown",
        "paris-1": "changed",
        "paris-2": "failed",
    }
    assert host(report, "paris-2")["reason"] == "Port 22"
    assert host(report, "berlin-1")["packages"] == {"install": ["docker.io"], "remove": ["libgomp1"]}
    assert report["serial"] == 3


def test_totals_and_times(report: dict[str, Any]) -> None:
    berlin, paris = (site["totals"] for site in report["sites"])
    assert berlin["bytes"] == {"uplink": 30_000_000, "lan": 50_000_000}
    assert berlin["seconds"] == {"uplink": 30.0, "lan": 4.0}
    assert berlin["models"] == {"added": 1, "changed": 1, "removed": 1}
    assert (berlin["starts"], berlin["restarts"]) == (1, 1)
    assert paris["seconds"] == {"uplink": None, "lan": None}
    # Paris moves nothing, so that its unknown rates make no time unknown.
    assert report["totals"]["seconds"] == {"uplink": 30.0, "lan": 4.0}
    assert report["totals"]["hosts"] == {"changed": 3, "unchanged": 1, "unknown": 1, "failed": 1}


def test_a_site_without_a_rate_has_no_estimate() -> None:
    fleet = {name: dict(variables) for name, variables in FLEET.items()}
    for variables in fleet.values():
        variables.pop("edgeml_site_uplink_mbit", None)
    report = collect(fleet, list(fleet))
    assert report["totals"]["seconds"] == {"uplink": None, "lan": 4.0}
    assert "uplink 30.0 MB, no estimate without edgeml_site_uplink_mbit" in table(report)


@pytest.mark.parametrize("rate", [0, -1, "fast", "inf", "nan", []])
def test_a_rate_that_is_none(rate: object) -> None:
    with pytest.raises(FleetError, match="edgeml_site_lan_mbit is not a rate at host one"):
        collect({"one": {"edgeml_site_lan_mbit": rate}}, ["one"])


def test_table(report: dict[str, Any]) -> None:
    digest = "9" * 12
    assert (
        table(report)
        == f"""\
Plan for the lock with serial 3: 3 of 6 hosts change

Site berlin
  host           what                        before                after                         moves
  berlin-mirror  content                     serial 2              serial 3, 4 blobs come, 1 go  uplink 25.0 MB
                 mirror                      none                  mirror@{digest}, start    uplink 5.0 MB
  berlin-1       engine                                            install
                 install packages                                  docker.io
                 remove packages                                   libgomp1
                 kernel module v4l2loopback  not loaded            loaded
                 sysctl vm.swappiness        60                    10
                 image                       runtime@aaaaaaaaaaaa  runtime@bbbbbbbbbbbb          LAN 40.0 MB
                 model digits                1.0.0 cccccccccccc    1.1.0 int8 dddddddddddd
                 model faces                 none                  2.0.0 eeeeeeeeeeee
                 model sounds                1.0.0 ffffffffffff    none
                 models                                            fetched                       LAN 10.0 MB
                 setting engine.threads      1                     2
                 server                                            restart
  unchanged: berlin-2
  unknown: berlin-3: unreachable
  total: 2 changed, 1 unchanged, 1 unknown; models: 1 added, 1 changed, 1 removed; starts: 1, restarts: 1; \
packages: 1 to install, 1 to remove; uplink 30.0 MB, about 30 s; LAN 50.0 MB, about 4 s

Site paris
  host     what             before  after  moves
  paris-1  server (vision)          start
  failed: paris-2: Port 22
  total: 1 changed, 1 failed; starts: 1, restarts: 0

Fleet: 3 changed, 1 unchanged, 1 unknown, 1 failed; models: 1 added, 1 changed, 1 removed; starts: 2, restarts: 1; \
packages: 1 to install, 1 to remove; uplink 30.0 MB, about 30 s; LAN 50.0 MB, about 4 s"""
    )


def test_a_host_whose_kernel_alone_changes_is_changed() -> None:
    file = {"kind": "file", "name": "/etc/sysctl.d/90-edgeml.conf", "before": "differs", "after": "written"}
    answers = {"inference_runtime_result": release(), "inference_runtime_kernel": {"plan": [file]}}
    report = collect({"one": answers}, ["one"])
    assert host(report, "one")["state"] == "changed"
    assert "file /etc/sysctl.d/90-edgeml.conf  differs  written" in table(report)


def test_a_kernel_that_cannot_give_what_is_asked_for_is_the_reason() -> None:
    answers = {"inference_runtime_result": release(), "inference_runtime_kernel": {"failed": True, "msg": "No such"}}
    assert host(collect({"one": answers}, ["one"]), "one")["reason"] == "No such"


def test_options_of_a_model_that_change() -> None:
    before = {**model("1.0.0", "a"), "protocols": ["rest"]}
    after = {**before, "options": {"batching": {"max_size": 8}}}
    changed = release(action="restart", models=[{"name": "digits", "before": before, "after": after}])
    shown = table(collect({"one": {"inference_runtime_result": changed}}, ["one"]))
    assert '1.0.0 aaaaaaaaaaaa options={"batching": {"max_size": 8}}' in shown
    assert "protocols" not in shown


def test_many_unchanged_hosts_take_one_line() -> None:
    fleet = {f"device-{number}": {"inference_runtime_result": release()} for number in range(200)}
    shown = table(collect(fleet, list(fleet)))
    assert len(shown.splitlines()) == 5
    assert "device-11 and 188 more" in shown


def test_nothing_that_a_host_says_reaches_terminal_or_page_as_code() -> None:
    evil = {"edgeml_site": "a|b", "inference_runtime_result": {"failed": True, "msg": "\x1b[2J<script>`x`\n# gone"}}
    report = collect({"one": evil}, ["one"])
    assert "\x1b" not in table(report)
    assert "<script>" not in markdown(report)
    assert "\n# gone" not in markdown(report)
    assert "a\\|b" in markdown(report)


def test_markdown(report: dict[str, Any]) -> None:
    shown = markdown(report).splitlines()
    assert shown[:5] == [
        "## Plan for the lock with serial 3: 3 of 6 hosts change",
        "",
        "### Site berlin",
        "",
        "| Host | What | Before | After | Moves |",
    ]
    assert "| berlin-1 | model digits | 1.0.0 cccccccccccc | 1.1.0 int8 dddddddddddd |  |" in shown
    assert "- failed: paris-2: Port 22" in shown
    assert shown[-1].startswith("**Fleet**: 3 changed")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_600, "100 kB"), (999_600, "1.0 MB"), (3e12, "3.0 TB")],
)
def test_readable_sizes(size: float, text: str) -> None:
    assert readable_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (0.2, "1 s"), (99, "99 s"), (100, "2 min"), (6000, "1 h 40 min")]
)
def test_readable_times(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({}, ""),
        ({"days": 0, "mbit": 1.0, "hours": []}, ""),
        ({"days": 2, "mbit": 1.0, "hours": ["22:00-05:00"]}, ", 2 nights at 1 Mbit/s from 22:00"),
        ({"days": 1, "mbit": 0.5, "hours": ["12:30-13:00"]}, ", 1 day at 0.5 Mbit/s from 12:30"),
        ({"days": 4, "mbit": None, "hours": []}, ", 4 days"),
    ],
)
def test_the_bill_of_a_mirror(of: dict[str, Any], expected: str) -> None:
    assert bill(of) == expected
    mirror = {"plan": {**MIRROR["plan"], "bill": of}}
    assert f"uplink 25.0 MB{expected}" in table(collect({"m": {"site_mirror_result": mirror}}, ["m"]))
