# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided in the course of a rollout, from answers in the shape that hosts give them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import course
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.judgement import (
    AFTER,
    BEFORE,
    FAILURE,
    OPENED,
    WATCHED,
    HostOutcome,
    table,
)
from ansible_collections.edgeml.fleet.tests.support.rollout_course import (
    DONE,
    LOST,
    NEW,
    OLD,
    OPEN,
    REFUSAL,
    REFUSED,
    history,
    run,
)
from ansible_collections.edgeml.fleet.tests.support.told_releases import told


def nobody(question: str) -> str:
    raise AssertionError(question)


def test_a_good_wave_goes_on() -> None:
    rollout = run({"a": DONE}, pause_seconds=30)
    step = rollout.judge(rollout.wave("a"))
    assert step.result == {"stop": False, "reason": "", "red": False, "pause": True}
    assert step.pause == 30
    assert "Wave 1 of 3, canary: 1 done" in step.text
    lines = {line["outcome"]: line for line in step.lines}
    assert [(line["host"], line["release"][:1], line["rollout"], line["serial"]) for line in step.lines] == [
        ("a", "o", "", None),  # what the host knew before is not of this rollout
        ("a", "n", "7.1", 7),
        ("", "", "7.1", 7),
    ]
    assert lines["rollout_wave"]["wave"] == 1


@pytest.mark.parametrize(("max_failed", "stops"), [(0, True), ("40%", True), (1, False), ("50%", False)])
def test_failures_end_the_rollout_when_there_are_too_many(max_failed: int | str, stops: bool) -> None:
    rollout = run({"b": REFUSED, "c": DONE}, max_failed=max_failed)
    step = rollout.judge(rollout.wave("b"))
    assert step.result["stop"] is stops
    reason = f"b: Make the release of each runtime active: {REFUSAL}"
    assert reason in step.text
    assert "digits p95 31.2 of 25 ms" in step.text
    assert (reason in step.result["reason"]) is stops
    refused = [line for line in step.lines if line["host"] == "b" and line["rollout"]]
    assert [(line["outcome"], line["reason"]) for line in refused] == [("refused", REFUSAL)], "said once"


def test_a_wave_in_which_all_fail_ends_the_rollout_whatever_is_tolerated() -> None:
    rollout = run({"b": REFUSED, "c": REFUSED}, max_failed=5)
    assert rollout.judge(rollout.wave("b")).result["stop"]
    rollout = run({"b": REFUSED, "c": LOST}, max_failed=1)
    assert rollout.judge(rollout.wave("b")).result["stop"], "who was not there says nothing"


def test_hosts_that_are_not_there_are_pending() -> None:
    lost_later = {**DONE, AFTER: {"unreachable": True, "msg": "Connection reset"}, FAILURE: {"task": "x", "result": {}}}
    rollout = run({"b": LOST, "c": lost_later})
    step = rollout.judge(rollout.wave("b"))
    assert [(line["host"], line["outcome"]) for line in step.lines if line["host"]] == [
        ("b", "pending"),
        ("c", "pending"),
    ]
    assert "Connection timed out" in step.text
    rollout = run({"b": LOST, "c": LOST})
    assert not rollout.judge(rollout.wave("b")).result["stop"], "they are in nobody's way"


def test_an_answer_of_ssh_that_is_not_utf_8_ends_nothing(tmp_path: Path) -> None:
    gone = {BEFORE: {"unreachable": True, "msg": "connect to host b: Verbindung verweigert f\udcfcr b"}}
    taken_back = history("rolled_back", "n", 9, "exit f\udcfcr", "guard")
    rollout = run({"b": gone, "c": {**DONE, AFTER: told("o", OLD, NEW, taken_back)}})
    step = rollout.judge(rollout.wave("b"))
    assert {line["host"]: line["outcome"] for line in step.lines}["b"] == "pending"
    assert "f\\udcfcr b" in step.text
    assert ledger.append(str(tmp_path / "ledger"), step.lines) == len(step.lines)


def test_a_host_that_left_the_play_in_its_wave_is_pending() -> None:
    """Ansible drops a host at the task that does not reach it: nobody asked or told it anything since."""
    rollout = run(
        {"a": {**DONE, **OPEN}, "b": {BEFORE: told("o", OLD), OPENED: {"stop": False}}, "c": {**DONE, **OPEN}}
    )
    step = rollout.judge(rollout.wave("b"))
    assert not step.result["stop"]
    assert [(line["host"], line["outcome"]) for line in step.lines if line["rollout"]] == [
        ("b", "pending"),
        ("c", "active"),
        ("", "rollout_wave"),
    ]
    assert "2 of 3 waves, 2 done, 0 failed, 1 not begun, 1 pending" in rollout.sum_up().text


@pytest.mark.parametrize("other", [LOST, {BEFORE: told("o", OLD)}])
def test_a_wave_that_loses_all_its_hosts_ends_the_rollout(other: dict[str, Any]) -> None:
    """What takes devices off the network gets no further than to its first ones."""
    gone = {"results": [{"unreachable": True, "msg": "no route to host"}], "unreachable": True}
    lost = {BEFORE: told("o", OLD), "inference_runtime_result": gone, FAILURE: {"task": "x", "result": {}}}
    rollout = run({"a": {**DONE, **OPEN}, "b": {**lost, OPENED: {"stop": False}}, "c": other}, max_failed=5)
    step = rollout.judge(rollout.wave("b"))
    assert step.result["stop"]
    assert step.result["red"]
    assert "hosts that were to do were lost" in step.result["reason"]
    assert [(line["host"], line["outcome"]) for line in step.lines if line["rollout"]] == [
        ("b", "pending"),
        ("c", "pending"),
        ("", "rollout_wave"),
        ("", "rollout_stopped"),
    ]
    assert "b: It was lost in its wave: no route to host" in step.text


def test_what_fails_outside_of_the_release_is_told_to_the_ledger_too() -> None:
    failure = {"task": "Install packages", "hidden": False, "result": {"msg": "no space left"}}
    secret = {"task": "Write certificate, key and token", "hidden": True, "result": {}}
    rollout = run({"b": {**DONE, AFTER: told("o", OLD), FAILURE: failure}, "c": {BEFORE: told("o"), FAILURE: secret}})
    step = rollout.judge(rollout.wave("b"))
    failed = {line["host"]: line["reason"] for line in step.lines if line["outcome"] == "failed"}
    assert failed == {
        "b": "Install packages: no space left",
        "c": "Write certificate, key and token: its answer is hidden, since it may hold a secret",
    }


def test_a_release_that_the_guard_takes_back_in_the_pause_fails() -> None:
    way_back = history("rolled_back", "n", 9, "it crashed 3 times", "guard"), history("active", "o", 9, "", "guard")
    back = told("o", OLD, NEW, *way_back)
    rollout = run({"a": {**DONE, WATCHED: back}}, pause_seconds=30)
    wave = rollout.wave("a")
    assert not rollout.judge(wave).result["stop"]
    step = rollout.judge(wave, watched=True)
    assert step.result["stop"]
    assert step.pause == 0
    assert "it crashed 3 times" in step.result["reason"]
    # Tried again by force it is what was meant to be.
    rollout = run({"a": {**DONE, AFTER: told("n", OLD, NEW, *way_back, history("active", "n", 10))}})
    assert not rollout.judge(wave).result["stop"]
    # One that was taken back before this rollout says nothing about it.
    known = history("rolled_back", "x", 0, "long ago")
    rollout = run({"a": {BEFORE: told("o", OLD, known), AFTER: told("o", OLD, known)}})
    assert not rollout.judge(wave).result["stop"]


def test_a_try_at_the_same_time_as_an_earlier_one_is_another() -> None:
    """A device without a battery makes all of them a minute after its clock's beginning."""
    known = {**history("rolled_back", "x", 0, "long ago"), "place": "1f0c9a2e-000001"}
    again = {**known, "place": "1f0c9a2e-000002", "reason": "it crashed again"}
    rollout = run({"a": {BEFORE: told("o", OLD, known), AFTER: told("o", OLD, known, again)}})
    step = rollout.judge(rollout.wave("a"))
    assert "it crashed again" in step.result["reason"]
    assert [line["reason"] for line in step.lines if line["host"] and line["rollout"]] == ["it crashed again"]


def test_what_was_told_before_the_pause_is_not_told_again() -> None:
    failed = {BEFORE: told("o", OLD), FAILURE: {"task": "x", "result": {"msg": "no space left"}}}
    rollout = run({"b": LOST, "c": failed}, pause_seconds=30)
    told_before, told_after = (rollout.judge(rollout.wave("b"), watched=watched).lines for watched in (False, True))
    assert [line["outcome"] for line in told_before if line["rollout"] and line["host"]] == ["pending", "failed"]
    assert [line["outcome"] for line in told_after if line["rollout"] and line["host"]] == []


def test_a_host_that_failed_before_its_turn_is_not_done() -> None:
    """A machine that is mirror and device, and whose mirror failed, takes no part in the play."""
    rollout = run({"b": {}, "c": {**DONE, **OPEN}})
    assert rollout.judge(rollout.wave("b")).result["reason"].endswith("b: It failed before its turn")
    assert list(rollout.sum_up().result["failed_hosts"]) == ["b"]


def test_a_host_that_does_not_serve_fails() -> None:
    stopped = told("n", OLD, NEW, serving=False, drift=["the container edgeml-runtime does not run"])
    rollout = run({"a": {**DONE, AFTER: stopped}})
    assert "the container edgeml-runtime does not run" in rollout.judge(rollout.wave("a")).result["reason"]


def test_a_large_wave_is_told_in_few_lines() -> None:
    failed = (500, 800)
    outcomes = [HostOutcome(f"h{number}", "failed" if number in failed else "done") for number in range(900)]
    lines = table("Wave 4 of 5: 898 done, 2 failed", outcomes).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["h500", "h800", "h0"]
    assert "  and 880 more" in lines
    assert len(lines) < 30


# -- before a wave -----------------------------------------------------------------------------------------------------


def test_the_first_wave_needs_no_approval_unless_an_earlier_run_began() -> None:
    rollout = run({}, approval="prompt")
    step = rollout.open(rollout.wave("a"), nobody)
    assert not step.result["stop"]
    assert [(line["outcome"], line["reason"], line["hosts"]) for line in step.lines] == [
        ("rollout_started", "4 hosts, waves of 1, 2, 1", list("abcd"))
    ]
    assert rollout.open(rollout.wave("b"), lambda _: "yes") == course.Step("", {"stop": False, "waiting": {}})
    step = rollout.open(rollout.wave("b"), lambda _: "no")
    assert step.result["stop"]
    assert step.result["red"]
    assert "Wave 2 of 3: it is not approved at the prompt. Seen: no" in step.text
    # All hosts of an earlier run may differ again, as with edgeml_force.
    for again in (run({}, approval="prompt", done=3), run({}, approval="prompt", finished=1)):
        assert again.open(again.plan["waves"][0], lambda _: "no").result["stop"]


def test_a_closed_window_ends_the_run_well() -> None:
    moment = datetime.now(UTC)
    hours = [(moment + timedelta(hours=hours)).strftime("%H:%M") for hours in (-1, 1, 2)]
    rollout = run({}, window={"from": hours[0], "to": hours[1]})
    assert not rollout.open(rollout.wave("a"), nobody).result["stop"]
    rollout = run({}, window={"from": hours[1], "to": hours[2]})
    step = rollout.open(rollout.wave("a"), nobody)
    assert step.result["stop"]
    assert not step.result["red"]
    assert "it opens 20" in step.text
    assert list(step.lines) == [], "a schedule writes nothing"
    assert [line["outcome"] for line in rollout.open(rollout.wave("b"), nobody).lines] == ["rollout_stopped"]


@pytest.mark.parametrize("said", ["yes", "no"])
def test_a_wave_does_not_begin_after_the_window_has_closed(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """An answer may take long."""
    now = datetime(2026, 11, 28, 3, 55, tzinfo=UTC)
    monkeypatch.setattr(course, "local_time", lambda _window: now)
    rollout = run({}, window={"from": "22:00", "to": "04:00"}, approval="prompt")

    def late(_: str) -> str:
        nonlocal now
        now += timedelta(minutes=50)
        return said

    step = rollout.open(rollout.wave("b"), late)
    assert "the window is closed; it opens 2026-11-28 22:00" in step.text
    assert (step.result["stop"], step.result["red"]) == (True, False)


# -- check mode --------------------------------------------------------------------------------------------------------


def test_check_mode_tells_what_each_host_would_do_and_writes_nothing() -> None:
    plan = {
        "runtime": "runtime", "action": "restart", "image": None, "settings": [{"key": "log_level"}],
        "models": [{"name": "digits", "before": {"version": "1.0.0"}, "after": {"version": "1.1.0"}}],
    }  # fmt: skip
    hosts = {
        "b": {BEFORE: told("o"), "inference_runtime_result": {"results": [{"plan": plan}]}},
        "c": {BEFORE: told("o"), FAILURE: {"task": "Look", "hidden": False, "result": {"msg": "no"}}},
    }
    rollout = run(hosts, check_mode=True, approval="prompt", pause_seconds=60)
    assert not rollout.open(rollout.wave("b"), nobody).result["stop"]
    step = rollout.judge(rollout.wave("b"))
    assert "runtime: restart (digits 1.0.0 -> 1.1.0, log_level)" in step.text
    assert "fails: Look: no" in step.text
    assert (list(step.lines), step.pause) == ([], 0)
    assert list(rollout.sum_up().lines) == []


def test_errors_are_the_collections_own() -> None:
    def broken(_: str) -> str:
        raise FleetError("Nobody can be asked for approval")

    rollout = run({}, approval="prompt")
    with pytest.raises(FleetError, match="Nobody"):
        rollout.open(rollout.wave("b"), broken)


def test_only_devices_that_need_the_mirror_that_was_lost_wait_for_it() -> None:
    lacking = {
        "name": "content", "severity": "refuse", "value": "lacks model digits 1.1.0", "need": "what the lock names",
        "remedy": "bring the mirror up to date",
    }  # fmt: skip
    hosts = {
        "b": {"inference_runtime_preflight": {"findings": [lacking]}, "edgeml_site": "berlin"},
        "c": {"inference_runtime_preflight": {"findings": []}, "edgeml_site": "berlin"},
        "mirror": {"site_mirror_preflight": {"findings": []}, "edgeml_site": "berlin"},
    }
    for up_to_date, waiting in ((False, ["b"]), (True, [])):
        rollout = run(hosts)
        rollout.plan = {**rollout.plan, "mirrors": ["mirror"]}
        rollout.hostvars = {**rollout.hostvars, "mirror": {**hosts["mirror"], "edgeml_rollout_mirror_done": up_to_date}}
        step = rollout.open(rollout.wave("b"), lambda _: "yes")
        assert list(step.result["waiting"]) == waiting
    hosts["b"]["edgeml_rollout_opened"] = {"stop": False, "waiting": {"b": "Its mirror is lost"}}
    rollout = run({**hosts, "c": DONE})
    judged = rollout.judge(rollout.wave("b"))
    assert "1 done, 1 pending" in judged.text
    assert not judged.result["stop"]
