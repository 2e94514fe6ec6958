# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import (
    is_open,
    local_time,
    next_closing,
    next_opening,
    seconds_left,
)

NIGHT = {"from": "22:00", "to": "05:00"}
WEEKDAY_NIGHTS = {"days": ["mon", "tue", "wed", "thu", "fri"], **NIGHT}
DAY = {"from": "08:00", "to": "17:30"}


def at(text: str) -> datetime:
    """Return a time of the week that begins on Monday, 2026-11-23: `thu 21:59`."""
    day, clock = text.split()
    number = 23 + ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
    return datetime.fromisoformat(f"2026-11-{number} {clock}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "moment", "expected"),
    [
        (None, "mon 12:00", True),
        (DAY, "mon 08:00", True),
        (DAY, "mon 17:29", True),
        (DAY, "mon 17:30", False),
        (DAY, "mon 07:59", False),
        (NIGHT, "mon 23:00", True),
        (NIGHT, "mon 04:59", True),
        (NIGHT, "mon 05:00", False),
        (NIGHT, "mon 21:59", False),
        (WEEKDAY_NIGHTS, "sat 04:00", True),  # it opened on Friday
        (WEEKDAY_NIGHTS, "sat 22:30", False),
        (WEEKDAY_NIGHTS, "mon 04:00", False),  # it would have opened on Sunday
        ({"from": "06:00", "to": "06:00"}, "wed 05:00", True),  # a day and a night
        ({"days": ["tue"], "from": "06:00", "to": "06:00"}, "wed 05:00", True),
        ({"days": ["tue"], "from": "06:00", "to": "06:00"}, "wed 06:00", False),
    ],
)
def test_is_open(window: dict[str, object] | None, moment: str, expected: bool) -> None:
    assert is_open(window, at(moment)) is expected


@pytest.mark.parametrize(
    ("window", "moment", "expected"),
    [
        (NIGHT, "mon 12:00", "mon 22:00"),
        (NIGHT, "mon 22:00", "tue 22:00"),
        (WEEKDAY_NIGHTS, "fri 23:00", "mon 22:00"),
        ({"days": ["mon"], **DAY}, "mon 08:00", "mon 08:00"),
    ],
)
def test_next_opening(window: dict[str, object], moment: str, expected: str) -> None:
    opens, wanted = next_opening(window, at(moment)), at(expected)
    assert opens > at(moment)
    assert (opens.weekday(), opens.time()) == (wanted.weekday(), wanted.time())


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_utc_unless_said_otherwise(new_york: None) -> None:
    moment = at("mon 23:00")  # 18:00 in New York
    assert is_open(NIGHT, local_time(NIGHT, moment))
    local = {**NIGHT, "utc": False}
    assert not is_open(local, local_time(local, moment))
    assert next_opening(local, local_time(local, moment)).astimezone(UTC).hour == 3


@pytest.mark.parametrize(
    ("night", "hours"),
    [("2026-03-07 23:00", 5), ("2026-03-09 23:00", 6), ("2026-10-31 23:00", 7)],
)
def test_window_closes_by_the_clock_of_its_morning(new_york: None, night: str, hours: int) -> None:
    """Clocks change in the first and the last of these nights."""
    local = {**NIGHT, "utc": False}
    now = local_time(local, datetime.fromisoformat(night).astimezone())
    assert seconds_left(local, now) == hours * 3600
    assert next_closing(local, now).strftime("%H:%M") == "05:00"
