# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.ledger import line, merge
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.events import (
    FINISHED,
    STARTED,
    STOPPED,
    WAVE,
    Progress,
    interrupted,
    is_pending,
    progress,
)


def step(outcome: str, rollout: str, **more: Any) -> dict[str, Any]:
    return line("", outcome, rollout=rollout, **more)


def host(name: str, outcome: str, rollout: str) -> dict[str, Any]:
    return line(name, outcome, rollout=rollout)


def test_first_rollout_of_a_lock() -> None:
    assert progress([], 7) == Progress("7.1")
    others = [step(STARTED, "6.4"), step(STOPPED, "77.1"), host("a", "active", ""), step(STARTED, "7.x")]
    assert progress(others, 7) == Progress("7.1")


def test_one_that_was_cut_short_goes_on() -> None:
    known = [
        step(STARTED, "7.1"),
        host("a", "active", "7.1"),
        step(WAVE, "7.1", wave=1),
        host("b", "active", "7.1"),
        host("c", "refused", "7.1"),
        step(WAVE, "7.1", wave=2),
        step(STOPPED, "7.1"),
    ]
    for length in range(6, 8):
        assert progress(known[:length], 7) == Progress("7.1", frozenset("ab"), 2)
    # What was rolled back since is not done.
    assert progress([*known, host("b", "rolled_back", "7.1")], 7).done == frozenset("a")


def test_what_a_guard_went_back_to_is_not_done() -> None:
    known = [line("a", "active", rollout="7.1", release="n"), step(WAVE, "7.1", wave=1)]
    again = line("a", "active", rollout="7.1", release="n", by="guard")
    back = line("a", "active", rollout="7.1", release="o", by="guard")
    assert progress([*known, again], 7).done == frozenset("a")
    assert progress([*known, back], 7).done == frozenset()


def test_hosts_of_all_runs_make_the_fleet_of_a_rollout() -> None:
    known = [step(STARTED, "7.1", hosts=["a", "b"]), step(STOPPED, "7.1"), step(STARTED, "7.1", hosts=["b", "c"])]
    assert progress(known, 7).fleet == frozenset("abc")
    assert progress([step(STARTED, "7.1")], 7).fleet == frozenset(), "as an older version wrote it"


def test_one_that_is_finished_is_followed_by_another() -> None:
    known = [step(STARTED, "7.1"), host("a", "active", "7.1"), step(WAVE, "7.1", wave=1), step(FINISHED, "7.1")]
    assert progress(known, 7) == Progress("7.2")
    assert progress([*known, step(STARTED, "7.2")], 7) == Progress("7.2")
    # Within a second the order of lines is not that of the steps.
    assert progress(merge(known), 7) == progress(known[::-1], 7) == Progress("7.2")


def test_a_run_that_ended_without_a_word_was_interrupted() -> None:
    def at(second: int, outcome: str) -> dict[str, Any]:
        return step(outcome, "7.1", time=f"2026-11-28T06:00:{second:02}Z")

    run = [at(1, STARTED), host("a", "active", "7.1"), at(2, WAVE)]
    assert interrupted([], 7) == ""
    assert interrupted(run, 7) == "7.1"
    # The steps of one second have no order.
    for end in (STOPPED, FINISHED):
        ended = merge([*run, at(2, end)])
        assert interrupted(ended, 7) == ""
    again = [*run, at(2, STOPPED), at(5, STARTED)]
    assert interrupted(again, 7) == "7.1"
    assert interrupted(again, 8) == ""


def test_pending_is_what_the_last_line_says() -> None:
    waiting = {"serial": 7, "rollout": "7.1"}
    known = [line("a", "pending", **waiting), line("b", "pending", **waiting), line("b", "active", **waiting)]
    assert is_pending(known, 7) == frozenset("a")
    assert is_pending(known, 8) == frozenset(), "a newer lock is waited for anew"
