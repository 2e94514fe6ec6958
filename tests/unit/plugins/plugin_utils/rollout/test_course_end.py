# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided at the end of a rollout: what became of it, whether it is finished, who goes back."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import course
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.course import JUDGED
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.judgement import BEFORE, OPENED, WATCHED
from ansible_collections.edgeml.fleet.tests.support.rollout_course import (
    DONE,
    GO_ON,
    LOST,
    OLD,
    OPEN,
    REFUSED,
    STOP,
    run,
)
from ansible_collections.edgeml.fleet.tests.support.told_releases import told


def test_sum_of_a_rollout_that_went_through() -> None:
    rollout = run({"a": {**DONE, **OPEN}, "b": {**DONE, **OPEN}, "c": {**LOST, **OPEN}, "d": {**DONE, **OPEN}})
    step = rollout.sum_up()
    assert step.text == "Rollout 7.1: 3 of 3 waves, 3 done, 0 failed, 0 not begun, 1 pending"
    assert step.result == {"failed_hosts": {}, "roll_back": {}, "red": False, "reason": ""}
    assert [line["outcome"] for line in step.lines] == ["rollout_finished"]


def test_a_run_for_a_part_of_a_rollout_does_not_finish_it() -> None:
    rollout = run({name: {**DONE, **OPEN} for name in "abcd"})
    rollout.plan = {**rollout.plan, "elsewhere": 3}
    step = rollout.sum_up()
    assert list(step.lines) == []
    assert "not finished: 3 hosts of earlier runs are to do, and are not in this one" in step.text


@pytest.mark.parametrize("rollback", [False, True])
def test_sum_of_a_rollout_that_was_ended(rollback: bool) -> None:
    ended = {OPENED: {"stop": False}, JUDGED: STOP}
    rollout = run({"a": {**DONE, **OPEN}, "b": {**REFUSED, **ended}, "c": {**DONE, **ended}}, rollback=rollback)
    step = rollout.sum_up()
    assert "2 of 3 waves, 2 done, 1 failed, 1 not begun" in step.text
    assert list(step.result["failed_hosts"]) == ["b"]
    assert step.result["red"]
    back = [{"name": "runtime", "release": "o" * 20}]
    assert step.result["roll_back"] == ({"a": back, "c": back} if rollback else {})
    assert list(step.lines) == []


def test_sum_of_a_rollout_that_may_not_begin() -> None:
    closed = {"stop": True, "reason": "Wave 1 of 3, canary: the window is closed", "red": False}
    step = run({"a": {OPENED: closed}}, rollback=True).sum_up()
    assert "0 of 3 waves, 0 done, 0 failed, 4 not begun" in step.text
    assert step.result == {"failed_hosts": {}, "roll_back": {}, "red": False, "reason": closed["reason"]}


def test_after_the_pause_counts_what_was_seen_after_it() -> None:
    dead = {"unreachable": True, "msg": "no route to host"}
    host = {**DONE, WATCHED: dead, OPENED: {"stop": False}, JUDGED: {**GO_ON, "pause": True}, course.WATCHED: STOP}
    step = run({"a": host}).sum_up()
    assert "does not answer since its release changed" in step.result["failed_hosts"]["a"]


def test_who_went_back_is_told_and_who_did_not_counts_as_failed() -> None:
    refused = {"task": "Go back to the release before", "result": {"msg": "the disk is full"}}
    back = {"a": {"edgeml_rollout_back": told("o", OLD)}, "b": {"edgeml_rollout_back_failure": refused}, "c": {}}
    step = run(back).went_back(["a", "b", "c"])
    assert step.text.startswith("Back at the release before: a\n")
    assert step.result["failed_hosts"] == {
        "b": "It did not go back: Go back to the release before: the disk is full",
        "c": "It was lost while it was to go back: what it serves is not known",
    }
    assert [(line["host"], line["outcome"]) for line in step.lines] == [
        ("a", "active"),
        ("b", "failed"),
        ("c", "failed"),
    ]


def test_a_wave_that_lost_all_its_hosts_has_the_others_go_back() -> None:
    ended = {OPENED: {"stop": False}, JUDGED: STOP}
    lost: dict[str, Any] = {BEFORE: told("o", OLD), **ended}
    step = run({"a": {**DONE, **OPEN}, "b": lost, "c": lost}, rollback=True).sum_up()
    assert (list(step.result["failed_hosts"]), list(step.result["roll_back"])) == ([], ["a"])


def test_a_wave_that_was_not_approved_has_nobody_go_back() -> None:
    """Nothing went wrong: one failure was tolerated, and the next wave did not begin."""
    refused = {"stop": True, "reason": "Wave 3 of 3: it is not approved", "red": True}
    hosts: dict[str, dict[str, Any]] = {"a": {**DONE, **OPEN}, "b": {**REFUSED, **OPEN}, "d": {OPENED: refused}}
    step = run({**hosts, "c": {**DONE, **OPEN}}, max_failed=1, rollback=True).sum_up()
    assert (step.result["red"], step.result["roll_back"]) == (True, {})
