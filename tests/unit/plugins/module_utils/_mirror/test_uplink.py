# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The uplink's limits, on a clock that the test moves: no verdict depends on how fast the machine is."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import CARRY_DAYS, Limits, PausedError, Uplink

NOON = datetime(2026, 3, 2, 12)
BLOCK = 64 << 10


class Clock:
    """Time that passes when somebody sleeps, and while bytes come over a line."""

    def __init__(self, start: datetime = NOON) -> None:
        self.start = start
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds - 1000.0)


def uplink(tmp_path: Path, clock: Clock, **options: Any) -> Uplink:
    limits = Limits.from_options(options)
    return Uplink(limits, tmp_path / "sync" / "uplink.json", clock=clock, sleep=clock.sleep, now=clock.now)


@pytest.mark.parametrize("mbit", [0.064, 1, 8, 100])
@pytest.mark.parametrize("line", [0.0, 0.5], ids=["a line without delay", "a line of twice the rate"])
def test_the_rate_is_exact(tmp_path: Path, mbit: float, line: float) -> None:
    """`line` is the time that a block takes to come, as a part of what the rate allows it."""
    clock = Clock()
    link = uplink(tmp_path, clock, mbit=mbit)
    begun, moved = clock(), 0
    for _ in range(400):
        clock.sleep(line * BLOCK / (mbit * 125_000))
        link.spend(BLOCK, True)
        moved += BLOCK
    assert moved * 8 / 1e6 / (clock() - begun) == pytest.approx(mbit, rel=0.01)


def test_time_without_traffic_is_not_made_up_for(tmp_path: Path) -> None:
    clock = Clock()
    link = uplink(tmp_path, clock, mbit=8)
    clock.sleep(3600)
    begun = clock()
    for _ in range(160):
        link.spend(BLOCK, True)
    assert 160 * BLOCK / (clock() - begun) == pytest.approx(1e6, rel=0.05)


def test_threads_share_the_rate(tmp_path: Path) -> None:
    """What each has to wait is counted from the same account, whoever comes first."""
    clock = Clock()
    waits: list[float] = []
    link = Uplink(Limits(rate=1e6), tmp_path / "u", clock=clock, sleep=waits.append, now=clock.now)

    def move() -> None:
        for _ in range(50):
            link.spend(1000, True)

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(waits) == pytest.approx(200 * 1000 / 1e6, abs=0.002)


def test_hours_over_midnight(tmp_path: Path) -> None:
    clock = Clock(datetime(2026, 3, 2, 21, 59))
    link = uplink(tmp_path, clock, hours=["22:00-05:00", "12:30-13:00"])
    with pytest.raises(PausedError, match=r"outside the allowed hours, goes on at 2026-03-02 22:00"):
        link.check()
    clock.sleep(60)
    link.spend(BLOCK, True)
    clock.sleep(7 * 3600 - 1)
    link.spend(BLOCK, True)
    clock.sleep(1)
    with pytest.raises(PausedError, match=r"goes on at 2026-03-03 12:30"):
        link.spend(BLOCK, True)
    link.spend(BLOCK, False)  # that was the last one: nothing is left to wait for


def test_bytes_of_a_day_and_what_is_carried_over(tmp_path: Path) -> None:
    clock = Clock()
    link = uplink(tmp_path, clock, bytes_per_day=1_000_000)
    link.spend(400_000, True)
    clock.sleep(86400)
    link.spend(1_500_000, True)  # 600,000 of yesterday, 1,000,000 of today
    assert link.left == 100_000
    with pytest.raises(PausedError, match=r"day's bytes are used up, goes on at 2026-03-04 00:00"):
        link.spend(100_000, True)
    link.close()

    # Kept over a restart, and over a month without traffic no more than a week's bytes.
    again = uplink(tmp_path, clock, bytes_per_day=1_000_000)
    with pytest.raises(PausedError):
        again.check()
    clock.sleep(30 * 86400)
    again.check()
    assert again.left == CARRY_DAYS * 1_000_000


def test_a_clock_that_goes_back_brings_nothing(tmp_path: Path) -> None:
    clock = Clock()
    link = uplink(tmp_path, clock, bytes_per_day=1000)
    link.spend(900, True)
    link.close()
    clock.start = datetime(1970, 1, 1)
    assert uplink(tmp_path, clock, bytes_per_day=1000).left == 100


def test_no_day_is_paid_twice(tmp_path: Path) -> None:
    """A host without a battery starts in the past, each time anew."""
    clock = Clock()
    link = uplink(tmp_path, clock, bytes_per_day=1000)
    link.spend(900, True)
    link.close()
    for past in (datetime(1970, 1, 1), datetime(2025, 6, 1), NOON - timedelta(days=1)):
        clock.start = past
        uplink(tmp_path, clock, bytes_per_day=1000).close()
        clock.start = NOON
        link = uplink(tmp_path, clock, bytes_per_day=1000)
        assert link.left == 100
        link.close()
    clock.sleep(86400)
    assert uplink(tmp_path, clock, bytes_per_day=1000).left == 1100


def test_days_pass_for_a_clock_that_stays_behind(tmp_path: Path) -> None:
    """Or after one that was ahead."""
    clock = Clock(datetime(2040, 1, 1))
    uplink(tmp_path, clock, bytes_per_day=1000).close()
    clock.start = NOON
    link = uplink(tmp_path, clock, bytes_per_day=1000)
    link.spend(900, True)
    for day in range(1, 4):
        clock.sleep(86400)
        link.check()
        assert link.left == 100 + day * 1000


def test_a_damaged_account_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "uplink.json").write_text('{"day": 5')
    assert uplink(tmp_path, Clock(), bytes_per_day=1000).left == 1000


def test_the_account_survives_a_kill(tmp_path: Path) -> None:
    """It is noted once a second, not only at the end."""
    clock = Clock()
    link = uplink(tmp_path, clock, bytes_per_day=1_000_000)
    for _ in range(10):
        clock.sleep(0.5)
        link.spend(1000, True)
    assert json.loads((tmp_path / "sync" / "uplink.json").read_text())["left"] == 1_000_000 - 10_000


def test_urgent_passes_all_limits(tmp_path: Path) -> None:
    link = uplink(tmp_path, Clock(), mbit=1, hours=["22:00-05:00"], bytes_per_day=1, urgent=True)
    link.check()
    link.spend(BLOCK, True)


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, 180_000_000, {"seconds": None, "days": None, "mbit": None, "hours": []}),
        ({"mbit": 1}, 180_000_000, {"seconds": 1440, "days": 1, "mbit": 1.0, "hours": []}),
        (
            {"mbit": 0.05, "hours": ["22:00-05:00"]},
            180_000_000,
            {"seconds": 28800, "days": 2, "mbit": 0.05, "hours": ["22:00-05:00"]},
        ),
        ({"bytes_per_day": 50_000_000}, 180_000_000, {"seconds": None, "days": 4, "mbit": None, "hours": []}),
        ({"mbit": 1}, 0, {"seconds": 0, "days": 0, "mbit": 1.0, "hours": []}),
    ],
)
def test_the_bill(tmp_path: Path, options: dict[str, Any], size: int, expected: dict[str, Any]) -> None:
    assert uplink(tmp_path, Clock(), **options).bill(size) == expected


@pytest.mark.parametrize(
    ("options", "variable", "seen"),
    [
        ({"mbit": -1.0}, "site_mirror_mbit", "-1.0"),
        ({"mbit": float("nan")}, "site_mirror_mbit", "nan"),
        ({"hours": ["22-5"]}, "site_mirror_hours", "'22-5'"),
        ({"hours": ["24:00-05:00"]}, "site_mirror_hours", "'24:00-05:00'"),
        ({"bytes_per_day": -5}, "site_mirror_bytes_per_day", "-5"),
    ],
)
def test_what_is_no_limit_is_refused(options: dict[str, Any], variable: str, seen: str) -> None:
    with pytest.raises(FleetError, match="Not a limit of the uplink") as refused:
        Limits.from_options(options)
    assert (refused.value.where, refused.value.seen) == (variable, seen)
