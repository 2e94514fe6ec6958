# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When waves may begin. Pure functions; times are aware, in the zone of the window."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def local_time(window: Mapping[str, Any], moment: datetime | None = None) -> datetime:
    """Return the moment, by default now, in the zone that the window's times are meant in."""
    moment = moment or datetime.now(UTC)
    return moment.astimezone(UTC) if window.get("utc", True) else moment.astimezone()


def is_open(window: Mapping[str, Any] | None, now: datetime) -> bool:
    """Tell whether a wave may begin. `days` are those on which the window opens, also if it closes on the next."""
    if window is None:
        return True
    return any(opens <= now < closes for opens, closes in _openings(window, now))


def next_opening(window: Mapping[str, Any], now: datetime) -> datetime:
    """Return when the window opens next."""
    return min(opens for opens, _closes in _openings(window, now) if opens > now)


def next_closing(window: Mapping[str, Any], now: datetime) -> datetime:
    """Return when the window closes next."""
    return min(closes for _opens, closes in _openings(window, now) if closes > now)


def seconds_left(window: Mapping[str, Any], now: datetime) -> float:
    """Return for how long the window is still open, 0 if it is closed."""
    return (next_closing(window, now) - now).total_seconds() if is_open(window, now) else 0.0


def _openings(window: Mapping[str, Any], now: datetime) -> list[tuple[datetime, datetime]]:
    """Return the openings from yesterday to the same day of the next week.

    Each time is converted by itself, since the controller's clock may change between two of them.
    """
    is_utc = window.get("utc", True)
    today = (now.astimezone(UTC) if is_utc else now.astimezone()).replace(tzinfo=None)
    found = []
    for days in range(-1, 8):
        day = today + timedelta(days=days)
        if DAYS[day.weekday()] not in window.get("days", DAYS):
            continue
        opens, closes = (_at(day, window[key]) for key in ("from", "to"))
        times = opens, closes if closes > opens else closes + timedelta(days=1)
        found.append(tuple(time.replace(tzinfo=UTC) if is_utc else time.astimezone() for time in times))
    return [(opens, closes) for opens, closes in found]


def _at(day: datetime, time: str) -> datetime:
    hour, minute = time.split(":")
    return day.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
