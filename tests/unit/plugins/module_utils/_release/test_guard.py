# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes the guard go back, and what does not. The quickstart's tests and tests/integration have a real engine."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release import attempt, transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release import guard as guard_module
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import GUARD_SECONDS, Transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import (
    LOOKS_BETWEEN_TRIES,
    UNREADY,
    Guard,
    look_after,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import Scrub, scrub
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    ACTIVE,
    MemoryEngine,
    desired,
)

FIRST, SECOND = (desired(threads).release_id() for threads in (1, 2))
LOOKS = UNREADY // GUARD_SECONDS


@pytest.fixture
def guard(release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> Guard:
    """Of a host that serves its second release, long since, and keeps the first."""
    monkeypatch.setattr(Transaction, "is_running", lambda self: False)
    release.watched["probation_seconds"] = 0
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    return Guard(engine, release.installed.host_root, "runtime")


def active(guard: Guard) -> str:
    return str(guard.installed.state()["active"]["id"])


@pytest.mark.parametrize("damage", ["lost", "empty", "of another kind"])
def test_restarts_before_the_first_look_are_no_crashes_of_now(guard: Guard, engine: MemoryEngine, damage: str) -> None:
    """They may be a year old: the guard's own file is gone."""
    assert guard.look() == ""
    engine.containers[ACTIVE]["RestartCount"] = 5
    if damage == "lost":
        guard.watch_file.unlink()
    else:
        guard.watch_file.write_text({"empty": "", "of another kind": '{"looks": "many"}'}[damage])
    assert {guard.look() for _ in range(3)} == {""}
    engine.containers[ACTIVE]["RestartCount"] = 8
    assert "it crashed 3 times" in guard.look()
    assert active(guard) == FIRST


def test_restarts_of_a_container_that_came_since_the_last_look_are_crashes(guard: Guard, engine: MemoryEngine) -> None:
    assert guard.look() == ""
    engine.containers[ACTIVE].update(Id="another", RestartCount=3)
    assert "it crashed 3 times" in guard.look()


def test_a_way_back_that_fails_is_tried_again_later(
    guard: Guard, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every look: each try costs a sick host a container, and an entry of its history."""

    def fail(self: Release, container: object, answers_only: bool) -> None:
        raise FleetError("The engine does not answer")

    assert guard.look() == ""
    engine.containers[ACTIVE]["RestartCount"] = 3
    monkeypatch.setattr(guard_module, "CRASH_WINDOW", 10 * UNREADY)
    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check", fail)
        told = [guard.look() for _ in range(LOOKS_BETWEEN_TRIES + 2)]
        assert told[0].startswith(f"release {SECOND[:12]} stays although it crashed 3 times")
        assert "does not answer" in told[0]
        assert told[1:-1] == [""] * LOOKS_BETWEEN_TRIES
        assert told[-1] == told[0]
    entries = guard.installed.history.entries()
    assert [entry["outcome"] for entry in entries] == ["active", "active", "failed", "failed"]
    assert active(guard) == SECOND
    assert [guard.look() for _ in range(LOOKS_BETWEEN_TRIES)] == [""] * LOOKS_BETWEEN_TRIES
    assert guard.look().startswith("went back")


ENDED = {
    "stopped": {"Running": False, "Restarting": False, "ExitCode": 143, "Error": ""},
    "killed": {"Running": False, "Restarting": False, "ExitCode": 137, "Error": ""},
    "paused": {"Running": True, "Paused": True, "Restarting": False, "ExitCode": 0, "Error": ""},
}


@pytest.mark.parametrize("how", ENDED)
def test_what_an_operator_stops_is_no_fault_of_the_release(
    guard: Guard, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """However long; and once it is started again it has its time to become ready."""
    assert guard.look() == ""
    is_ready = [False]
    monkeypatch.setattr(transaction, "says_ready", lambda container, name: is_ready[0])
    engine.containers[ACTIVE]["State"] = ENDED[how]
    assert {guard.look() for _ in range(2 * LOOKS)} == {""}
    engine.containers[ACTIVE]["State"] = {"Running": True, "ExitCode": 0}
    assert {guard.look() for _ in range(LOOKS - 1)} == {""}
    is_ready[0] = True
    assert guard.look() == ""
    assert active(guard) == SECOND


CRASHED = {
    "restarting": ({"Running": True, "Restarting": True, "ExitCode": 1, "Error": ""}, "always"),
    "out of memory": ({"Running": False, "Restarting": False, "ExitCode": 137, "OOMKilled": True}, "always"),
    "not startable": ({"Running": False, "Restarting": False, "ExitCode": 127, "Error": "no such program"}, "always"),
    "without restarts": ({"Running": False, "Restarting": False, "ExitCode": 1, "Error": ""}, "no"),
}


@pytest.mark.parametrize("how", CRASHED)
def test_what_ends_by_itself_is_given_up(
    guard: Guard, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert guard.look() == ""
    state, policy = CRASHED[how]
    monkeypatch.setattr(MemoryEngine, "start", lambda self, name: None)
    monkeypatch.setattr(transaction, "says_ready", lambda container, name: name != ACTIVE)
    engine.containers[ACTIVE]["State"] = state
    engine.containers[ACTIVE]["HostConfig"]["RestartPolicy"]["Name"] = policy
    told = [guard.look() for _ in range(LOOKS)]
    assert f"it has not been ready for {UNREADY} s" in told[-1]


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_keep_the_guard_from_acting(
    guard: Guard, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file is not needed to go back; without it, it counts from the last look that it could write down."""
    assert guard.look() == ""
    engine.containers[ACTIVE]["RestartCount"] = 3
    for module in (guard_module, attempt):
        monkeypatch.setattr(module, "replace_file", full)
    assert guard.look().startswith("went back")
    assert active(guard) == FIRST


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyError("State"), FleetError("x")])
@pytest.mark.parametrize("watches", ["guard", "scrub"])
def test_an_error_of_one_runtime_leaves_the_others_watched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    watches: str,
    error: Exception,
) -> None:
    for name in ("first", "second"):
        (tmp_path / "runtimes" / name).mkdir(parents=True)

    def look(self: Guard | Scrub) -> list[str]:
        if self.installed.name == "first":
            raise error
        return ["seen"]

    monkeypatch.setattr(Guard, "look", lambda self: look(self)[0])
    monkeypatch.setattr(Scrub, "run", look)
    (look_after if watches == "guard" else scrub)(tmp_path)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("first: ")
    assert str(error.args[-1]) in first
    assert second == "second: seen"
