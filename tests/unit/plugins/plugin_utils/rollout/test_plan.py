# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.events import Progress
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.plan import check_canary, make_plan, matching, table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import Settings

GROUPS = {"devices": ["a", "b", "c"], "canary": ["b", "c"], "site_berlin": ["a", "b"], "all": ["a", "b", "c"]}


def compared(unchanged: bool = False, **reasons: list[str]) -> dict[str, Any]:
    return {"edgeml_devices_comparison": {"unchanged": unchanged, "reasons": reasons}, "edgeml_site": "berlin"}


DIFFERS = compared(runtime=["the inventory, the lock or the collection says something else"])
GONE = compared(host=["it cannot be reached: Task failed: Connection timed out"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("", ""), ("canary", "bc"), ("canary:&site_berlin", "b"), ("a", "a"), ("devices:!canary", "a"), ("other", "")],
)
def test_patterns_are_those_of_ansible(pattern: str, expected: str) -> None:
    assert matching(pattern, GROUPS) == frozenset(expected)


@pytest.mark.parametrize(
    "pattern", ["", "canary", "a", "~can.*", "can*", "canary[0]", "canary[0:1]", "gone:a", "all:!canary"]
)
def test_canaries_that_may_be(pattern: str) -> None:
    check_canary(pattern, GROUPS)


@pytest.mark.parametrize("pattern", ["canry", "~cam(", "canry:&other", "canry[0]"])
def test_canaries_that_cannot_be_are_refused(pattern: str) -> None:
    with pytest.raises(FleetError) as refused:
        check_canary(pattern, GROUPS)
    words = ["edgeml_rollout.canary", f"Seen: {pattern}", "the groups there are: canary, devices, site_berlin"]
    assert [word for word in words if word not in str(refused.value)] == [], str(refused.value)


def test_plan_of_a_fleet() -> None:
    mirror = {"edgeml_mirrors_comparison": {"unchanged": False, "reasons": {"site_mirror": ["gone"]}}}
    hosts = {
        "m": mirror,
        "n": {"edgeml_mirrors_comparison": {"unchanged": False, "reasons": {"host": ["it cannot be reached: no"]}}},
        "a": DIFFERS, "b": DIFFERS, "c": DIFFERS, "d": GONE, "e": compared(True),
        "f": compared(host=["it cannot be compared: no Python"]),  # preflight tells what is wrong
    }  # fmt: skip
    plan = make_plan(hosts, list(hosts), GROUPS, Settings(canary="canary", first=2), Progress("7.1"))
    assert [(wave["name"], wave["hosts"]) for wave in plan["waves"]] == [("canary", ["b", "c"]), ("", ["a", "f"])]
    assert plan["order"] == ["b", "c", "a", "f"]
    assert plan["batches"] == [["b", "c", "wave-1"], ["a", "f", "wave-2"]]
    assert plan["pending"] == {"d": "It cannot be reached: Task failed: Connection timed out"}
    assert plan["unchanged"] == 1
    assert plan["mirrors"] == ["m"]
    assert plan["mirror_batch"] == ["m", "wave-mirrors"]
    text = table(plan)
    assert "Rollout 7.1: 4 hosts to do in 2 waves, 1 unchanged, 1 pending" in text
    assert "pending: d: It cannot be reached: Task failed: Connection timed out" in text


def test_a_device_that_lacks_its_mirror_is_pending() -> None:
    reason = "registry.edgeml.internal:5443: no route to host"
    plan = make_plan({"a": DIFFERS, "b": DIFFERS}, ["a", "b"], GROUPS, Settings(), Progress("7.1"), {"b": reason})
    assert (plan["order"], plan["pending"]) == (["a"], {"b": reason})


def test_no_mirror_is_changed_outside_of_the_window() -> None:
    mirrors = {"m": {"edgeml_mirrors_comparison": {"unchanged": False, "reasons": {}}}}
    window = Settings(window={"from": "22:00", "to": "04:00"})
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    for now, batch in ((noon, []), (noon.replace(hour=23), ["m", "wave-mirrors"]), (None, ["m", "wave-mirrors"])):
        plan = make_plan(mirrors, ["m"], GROUPS, window, Progress("7.1"), now=now)
        assert (plan["mirrors"], plan["mirror_batch"]) == (["m"], batch)
        assert ("mirrors: m: they are not changed, since the window is closed" in table(plan)) is not bool(batch)


def test_a_machine_may_be_mirror_and_device() -> None:
    both = {**DIFFERS, "edgeml_mirrors_comparison": {"unchanged": False, "reasons": {}}}
    plan = make_plan({"a": both}, ["a"], GROUPS, Settings(), Progress("7.1"))
    assert (plan["mirrors"], plan["order"]) == (["a"], ["a"])


def test_no_keeper_has_the_name_of_a_host() -> None:
    hosts = {"wave-1": compared(), "wave-mirrors": compared()}
    (wave,) = make_plan(hosts, list(hosts), GROUPS, Settings(first=2), Progress("7.1"))["waves"]
    assert (wave["hosts"], wave["keeper"]) == (["wave-1", "wave-mirrors"], "rollout-wave-1")


def test_the_rest_of_a_rollout() -> None:
    """Hosts that differ again are not done, whatever the ledger says."""
    hosts = {name: compared(name in "abcd") for name in "abcdefghij"}
    plan = make_plan(hosts, list(hosts), GROUPS, Settings(), Progress("7.1", frozenset("abcdx"), 2))
    assert (plan["done"], [*map(len, plan["batches"])], plan["waves"][0]["number"]) == (4, [7], 3)
    hosts = {name: compared() for name in "abcdefghij"}
    plan = make_plan(hosts, list(hosts), GROUPS, Settings(), Progress("7.1", frozenset("abcdx"), 2))
    assert (plan["done"], [*map(len, plan["batches"])], plan["waves"][0]["number"]) == (0, [2, 4, 7], 3)


def test_hosts_of_earlier_runs_that_are_not_in_this_one() -> None:
    progress = Progress("7.1", frozenset("b"), 1, frozenset(["a", "b", "c", "sold"]))
    plan = make_plan({"a": compared()}, ["a"], GROUPS, Settings(), progress)
    assert (plan["finished"], plan["elsewhere"]) == (1, 1), "c; b is done, sold is no longer in the inventory"
    everyone = {name: compared() for name in "abc"}
    assert make_plan(everyone, list(everyone), GROUPS, Settings(), progress)["elsewhere"] == 0


def test_nothing_to_do() -> None:
    plan = make_plan({"a": compared(True)}, ["a"], GROUPS, Settings(), Progress("7.1"))
    assert (plan["waves"], plan["order"], plan["batches"], plan["mirror_batch"]) == ([], [], [], [])
    assert "0 hosts to do in 0 waves, 1 unchanged" in table(plan)


def test_canaries_that_nobody_is_are_told() -> None:
    plan = make_plan({"a": compared()}, ["a"], GROUPS, Settings(canary="canary"), Progress("7.1"))
    assert "no host that is to do matches canary: canary" in table(plan, "canary")
