# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back to a release that the host keeps, and what is remembered of the one that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import WAY_BACK_FILE
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    ACTIVE,
    MODEL,
    PREVIOUS,
    MemoryEngine,
    desired,
)

FIRST, SECOND = (desired(threads).release_id() for threads in (1, 2))


@pytest.fixture
def twice(release: Release) -> Release:
    """A host that serves its second release, and keeps the first."""
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    return release


def active(release: Release) -> str:
    return str(release.installed.state()["active"]["id"])


def outcomes(release: Release) -> list[tuple[str, str, str]]:
    return [(entry["outcome"], entry["release"], entry["by"]) for entry in release.installed.history.entries()]


@pytest.mark.parametrize("by", ["guard", "operator"])
def test_a_host_that_went_back_stays_there(twice: Release, engine: MemoryEngine, by: str) -> None:
    """The playbook is repeated since another host was away."""
    twice.roll_back(FIRST, check_mode=False, by=by)
    before, written = dict(engine.containers), outcomes(twice)
    for check_mode in (True, False):
        result = twice.roll_back("", check_mode)
        assert not result["changed"]
        assert result["release"]["id"] == FIRST
        assert result["plan"]["action"] == "none"
        (told,) = result["warnings"]
        assert SECOND[:12] in told
        assert "edgeml_release" in told
    assert engine.containers == before
    assert outcomes(twice) == written
    assert twice.roll_back(SECOND[:8], check_mode=False)["changed"], "who names it gets it"
    assert active(twice) == SECOND


def test_a_refused_release_is_no_way_back(twice: Release) -> None:
    installed = twice.installed
    recorded = installed.recorded(FIRST)
    assert recorded is not None
    installed.history.add("refused", recorded[1], recorded[0].attempt_id(FIRST), by="guard", reason="too slow")
    for check_mode in (True, False):
        with pytest.raises(FleetError, match="too slow") as caught:
            twice.roll_back("", check_mode)
        assert "edgeml_release" in caught.value.remedy
    assert active(twice) == SECOND
    assert twice.roll_back(FIRST, check_mode=False)["changed"]


class Cut(BaseException):
    """The process is gone: nothing that it would do afterwards is done."""


@contextmanager
def cut_at(monkeypatch: pytest.MonkeyPatch, owner: type, step: str, container: str = "") -> Iterator[None]:
    """Lose the power before the first such step, or before the first one with this container."""
    original = getattr(owner, step)

    def killed(*arguments: Any, **options: Any) -> Any:
        if not container or container in arguments:
            raise Cut
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(owner, step, killed)
        yield


@pytest.mark.parametrize("by", ["guard", "operator"])
@pytest.mark.parametrize("step", ["set_restart_policy", "stop", "remove"])
def test_what_a_way_back_leaves_is_remembered_whatever_cuts_it(
    twice: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, step: str, by: str
) -> None:
    """The release that it went back to serves already; that it is no new one is known from the disk."""
    with cut_at(monkeypatch, MemoryEngine, step, PREVIOUS):
        twice.roll_back("", check_mode=False, by=by, reason="it crashed 3 times")
    assert set(engine.containers) == {ACTIVE, PREVIOUS}
    assert twice.settle()
    assert active(twice) == FIRST
    assert outcomes(twice)[-2:] == [("rolled_back", SECOND, by), ("active", FIRST, by)]
    assert twice.installed.history.entries()[-2]["reason"] == "it crashed 3 times"
    with pytest.raises(FleetError, match="rolled back here"):
        twice.converge(desired(2), check_mode=False)
    assert not twice.converge(desired(1), check_mode=False)["changed"]


def test_a_way_back_that_is_cut_before_the_hand_over_leaves_nothing(
    twice: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings the same release later, and is cut short, went back from nothing."""
    with cut_at(monkeypatch, Release, "_check"):
        twice.roll_back("", check_mode=False, by="guard")
    twice.settle()
    assert active(twice) == SECOND
    assert twice.installed.history.refused() == []
    with cut_at(monkeypatch, MemoryEngine, "stop"):
        twice.converge(desired(1), check_mode=False)
    assert twice.settle()
    assert active(twice) == FIRST
    assert outcomes(twice)[-1] == ("active", FIRST, "controller")
    assert twice.installed.history.refused() == []


def test_a_way_back_that_fails_leaves_nothing(twice: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Release, container: object, answers_only: bool) -> None:
        raise FleetError("The engine does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check", fail)
        with pytest.raises(FleetError, match="does not answer"):
            twice.roll_back("", check_mode=False)
    assert not (twice.installed.root / WAY_BACK_FILE).exists()
    assert twice.roll_back("", check_mode=False)["changed"]
    assert not (twice.installed.root / WAY_BACK_FILE).exists()


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("lost", ["image", "model"])
def test_check_mode_tells_what_the_way_back_lacks(
    twice: Release, engine: MemoryEngine, check_mode: bool, lost: str
) -> None:
    if lost == "image":
        engine.images.clear()
    else:
        (twice.installed.models / MODEL.directory_name).rmdir()
    with pytest.raises(FleetError, match="no longer has what the release to go back to needs"):
        twice.roll_back("", check_mode)
    assert not twice.roll_back(SECOND, check_mode)["changed"], "what serves is no way back, and needs none of it"


@pytest.mark.parametrize("by", ["guard", "operator"])
def test_the_history_tells_what_was_left_before_what_serves(twice: Release, by: str) -> None:
    """Readers look for an entry `rolled_back`, wherever it is; the last one is of what serves."""
    before = outcomes(twice)
    twice.roll_back("", check_mode=False, by=by)
    assert outcomes(twice)[len(before) :] == [("rolled_back", SECOND, by), ("active", FIRST, by)]
