# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host remembers of its tries, and what it forgets."""

from __future__ import annotations

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
