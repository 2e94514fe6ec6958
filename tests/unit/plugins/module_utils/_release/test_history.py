# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host remembers of its tries, and what it forgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.history import KEPT, History


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl", "runtime")


def add(history: History, outcome: str, release: str) -> None:
    history.add(outcome, {"id": release, "image": "", "models": []}, release, by="guard", reason="because")


@pytest.mark.parametrize("refusal", ["refused", "rolled_back"])
def test_a_refusal_outlives_many_tries(history: History, refusal: str) -> None:
    add(history, refusal, "bad")
    add(history, refusal, "forced")
    add(history, "active", "forced")
    for _ in range(3 * KEPT):
        add(history, "failed", "other")
    assert history.refusal("bad") is not None
    assert [entry["release"] for entry in history.refused()] == ["bad"]
    assert len(history.entries()) <= 2 * KEPT


def test_old_refusals_are_bounded(history: History) -> None:
    for number in range(5 * KEPT):
        add(history, "refused", f"release {number}")
    assert len(history.entries()) <= 2 * KEPT
    assert history.refusal(f"release {4 * KEPT}") is not None


def test_a_try_that_fails_for_another_reason_allows_nothing(history: History) -> None:
    """An operator has forced what was refused, and the mirror was away."""
    add(history, "refused", "bad")
    add(history, "failed", "bad")
    assert history.refusal("bad") is not None
    assert history.refused() != []
    add(history, "active", "bad")
    assert history.refusal("bad") is None
    assert history.refused() == []


def test_each_entry_has_its_place_in_its_history(history: History, tmp_path: Path) -> None:
    """Clocks of boards jump: what came after what must not depend on them."""
    for number in range(3 * KEPT):
        add(history, "active", f"release {number}")
    places = [entry["place"] for entry in history.entries()]
    assert places == sorted(set(places))
    (mark,) = {place.partition("-")[0] for place in places}
    assert places[-1] == f"{mark}-{3 * KEPT:06}"
    other = History(tmp_path / "other.jsonl", "runtime")
    add(other, "active", "release")
    assert other.entries()[0]["place"].endswith("-000001")
    assert not other.entries()[0]["place"].startswith(mark)


@pytest.mark.parametrize("place", [None, 5, "", "text", "aaaaaaaa-", "-000001"])
def test_a_history_that_lacks_places_goes_on_with_them(history: History, place: object) -> None:
    add(history, "active", "before")
    entry = {**history.entries()[0], "place": place}
    history.path.write_text(json.dumps({k: v for k, v in entry.items() if v is not None}) + "\n")
    add(history, "active", "after")
    assert history.entries()[-1]["place"].endswith("-000001")
