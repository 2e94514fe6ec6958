# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a synchronization goes on trying while no source answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import agent
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import PausedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import UnreachableError


class Attempts:
    """Stands for `perform`: makes the first steps, then nothing answers, on a clock of its own."""

    def __init__(self, root: Path, *steps: str) -> None:
        self.root = root
        self.steps = iter(steps)
        self.seconds = 0.0
        self.times: list[float] = []

    def __call__(self, *_arguments: Any, **_options: Any) -> dict[str, Any]:
        self.times.append(self.seconds)
        if step := next(self.steps, ""):
            getattr(self, step)()
        raise UnreachableError("nothing answers")

    def sleep(self, duration: float) -> None:
        self.seconds += duration

    def move(self) -> None:
        """Spend two hours with another 10 bytes."""
        self.seconds += 7200
        partial = self.root / "staging" / "a.part"
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(bytes(10 + (partial.stat().st_size if partial.exists() else 0)))

    def move_the_same_again(self) -> None:
        self.seconds += 7200
        (self.root / "staging" / "a.part").write_bytes(bytes(10))

    def pause(self) -> None:
        raise PausedError(
            "outside the allowed hours", datetime(2026, 11, 29) + timedelta(seconds=self.seconds + 28_800)
        )

    def until_it_gives_up(self, monkeypatch: pytest.MonkeyPatch, patience: int) -> list[float]:
        monkeypatch.setattr(agent, "perform", self)
        options = {"root": str(self.root), "patience": patience}
        with pytest.raises(UnreachableError):
            agent.patient(
                options,
                0,
                lambda: self.seconds,
                self.sleep,
                now=lambda: datetime(2026, 11, 29) + timedelta(seconds=self.seconds),
            )
        return self.times


def test_patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Attempts(tmp_path).until_it_gives_up(monkeypatch, 0) == [0]
    assert Attempts(tmp_path).until_it_gives_up(monkeypatch, 100) == [0, 30, 60, 90, 120]


def test_patience_is_counted_from_the_last_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    night = Attempts(tmp_path, "pause")
    assert night.until_it_gives_up(monkeypatch, 3600)[1] == 28_800
    assert night.seconds == 28_800 + 3600
    slow = Attempts(tmp_path, "move", "move", "move_the_same_again")
    assert slow.until_it_gives_up(monkeypatch, 3600)[1:3] == [7230, 14_460]
    assert len(slow.times) == 3, "what comes a second time is no progress"


def test_who_was_told_that_it_goes_on_is_not_let_down_by_one_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    night = Attempts(tmp_path, "pause")
    night.until_it_gives_up(monkeypatch, 0)
    assert night.seconds == 28_800 + agent.START_PATIENCE
