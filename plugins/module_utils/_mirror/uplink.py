# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a site's uplink a synchronization may use: a rate, hours of the day, and bytes a day."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file

CARRY_DAYS = 7  # days whose unused bytes may be used later
CREDIT_SECONDS = 0.25  # of the rate: how far a transfer that was held up may catch up at once
ACCOUNT_SECONDS = 1.0  # between two notes of what was used
DAY_MINUTES = 24 * 60
MBIT = 1e6 / 8  # bytes per second

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

# Argument specification of the option of mirror_sync.
LIMITS_ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "default": {},
    "options": {
        "mbit": {"type": "float", "default": 0.0},
        "hours": {"type": "list", "elements": "str", "default": []},
        "bytes_per_day": {"type": "int", "default": 0},
        "urgent": {"type": "bool", "default": False},
    },
}


class PausedError(FleetError):
    """The uplink may not be used before `until`."""

    def __init__(self, why: str, until: datetime) -> None:
        self.why = why
        self.until = until
        super().__init__(
            "The uplink may not be used now",
            where="site_mirror_hours and site_mirror_bytes_per_day",
            seen=f"{why}, goes on at {until:%Y-%m-%d %H:%M}",
            remedy="wait until then, or set site_mirror_urgent: true for one run",
        )


@dataclass(frozen=True)
class Limits:
    """What is allowed; empty and 0 are no limit.

    Attributes
    ----------
    rate : float
        Bytes per second over all transfers.
    hours : tuple of (int, int)
        Spans of the day in the host's local time, in minutes from midnight; a span may go over midnight.
    bytes_per_day : int
        What a day adds to the account. Unused bytes stay there for CARRY_DAYS days.
    """

    rate: float = 0.0
    hours: tuple[tuple[int, int], ...] = ()
    bytes_per_day: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Limits:
        """Return the limits that an option with LIMITS_ARGUMENT names; raise FleetError for what is none."""
        mbit, size = options.get("mbit") or 0.0, options.get("bytes_per_day") or 0
        if not 0 <= mbit < float("inf"):
            raise _refused("site_mirror_mbit", mbit, "give Mbit/s as a number above 0, or 0 for no limit")
        if size < 0:
            raise _refused("site_mirror_bytes_per_day", size, "give bytes as a whole number, or 0 for no limit")
        hours = tuple(_span(text) for text in options.get("hours") or ())
        return cls() if options.get("urgent") else cls(mbit * MBIT, hours, size)

    def is_open(self, moment: datetime) -> bool:
        """Return whether these hours hold `moment`."""
        minute = moment.hour * 60 + moment.minute
        return not self.hours or any((minute - start) % DAY_MINUTES < _length(start, end) for start, end in self.hours)

    def opens(self, moment: datetime) -> datetime:
        """Return `moment` if these hours hold it, else when the next of them begin."""
        if self.is_open(moment):
            return moment
        minute = moment.hour * 60 + moment.minute
        wait = min((start - minute) % DAY_MINUTES for start, _end in self.hours)
        return moment.replace(second=0, microsecond=0) + timedelta(minutes=wait)

    def bill(self, size: int, left: int | None) -> dict[str, Any]:
        """Return what moving `size` bytes takes while the rate is reached: {"seconds", "days", "mbit", "hours"}.

        `left` is what the account holds. `days` counts the days, or nights, in which something is moved. What a limit
        that is not set would say is None.
        """
        seconds = size / self.rate if self.rate else None
        open_seconds = 60 * (sum(_length(*span) for span in self.hours) or DAY_MINUTES)
        days = []
        if seconds is not None:
            days.append(_ceiling(seconds / open_seconds))
        if self.bytes_per_day:
            more = max(0, size - (self.bytes_per_day if left is None else max(0, left)))
            days.append(1 + _ceiling(more / self.bytes_per_day))
        return {
            "seconds": None if seconds is None else round(seconds),
            "days": max(days, default=None) if size else 0,
            "mbit": self.rate / MBIT or None,
            "hours": spans(self.hours),
        }


def _ceiling(number: float) -> int:
    return -int(-number // 1)


def _length(start: int, end: int) -> int:
    return (end - start) % DAY_MINUTES or DAY_MINUTES


def _span(text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    if found is None:
        raise _refused("site_mirror_hours", text, 'give spans of the day as "22:00-05:00", in the mirror\'s local time')
    numbers = [int(group) for group in found.groups()]
    return numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]


def _refused(variable: str, seen: Any, remedy: str) -> FleetError:
    return FleetError("Not a limit of the uplink", where=variable, seen=repr(seen), remedy=remedy)


class Account:
    """How many bytes are left today, kept in a file over restarts."""

    def __init__(self, path: Path, bytes_per_day: int, today: date) -> None:
        self._path = path
        self._bytes_per_day = bytes_per_day
        #: The last day that was paid, and the day that the clock showed last.
        self._paid = self._seen = today
        self.left = bytes_per_day
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            kept = json.loads(path.read_text())
            self._paid = date.fromisoformat(kept["day"])
            self._seen = date.fromisoformat(kept.get("seen", kept["day"]))
            self.left = min(int(kept["left"]), CARRY_DAYS * bytes_per_day)
        self.turn(today)

    def turn(self, today: date) -> None:
        """Add what the days since the last turn bring.

        No day is paid twice, whatever the clock showed meanwhile: hosts without a battery start in the past. While it
        shows less than was paid, the midnights count that are seen to pass.
        """
        if today > self._paid:
            days = (today - self._paid).days
            self._paid = today
        else:
            days = int(today != self._paid and (today - self._seen).days == 1)
        self._seen = today
        self.left = min(self.left + days * self._bytes_per_day, CARRY_DAYS * self._bytes_per_day)

    def keep(self) -> None:
        """Note what is left."""
        make_directory(self._path.parent)
        kept = {"day": self._paid.isoformat(), "seen": self._seen.isoformat(), "left": self.left}
        replace_file(self._path, json.dumps(kept).encode(), 0o600)


class Uplink:
    """Keeps all transfers of a synchronization together within the limits. Threads share it."""

    def __init__(
        self,
        limits: Limits,
        account_file: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.limits = limits
        self._account = Account(account_file, limits.bytes_per_day, now().date()) if limits.bytes_per_day else None
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._lock = threading.Lock()
        self._due = clock()
        self._noted = clock()

    @property
    def left(self) -> int | None:
        """What may still be moved today; None without a limit."""
        return self._account.left if self._account else None

    def bill(self, size: int) -> dict[str, Any]:
        """Return what moving `size` bytes takes, as Limits.bill does."""
        return self.limits.bill(size, self.left)

    def check(self) -> None:
        """Raise PausedError while nothing may be moved."""
        with self._lock:
            self._check()

    def spend(self, size: int, more: bool) -> None:
        """Account for bytes that were moved and wait until the rate allows others.

        Raises PausedError at a limit, if there are `more` to come.
        """
        with self._lock:
            now = self._clock()
            if self._account:
                self._account.left -= size
                if now - self._noted >= ACCOUNT_SECONDS:
                    self._account.keep()
                    self._noted = now
            wait = 0.0
            if self.limits.rate:
                takes = size / self.limits.rate
                # The bytes have been coming for a while: that time is theirs.
                self._due = max(self._due, now - max(CREDIT_SECONDS, takes)) + takes
                wait = self._due - now
            if more:
                self._check()
        if wait > 0:
            self._sleep(wait)

    def close(self) -> None:
        """Note what is left."""
        if self._account:
            self._account.keep()

    def _check(self) -> None:
        moment = self._now()
        opens = self.limits.opens(moment)
        if opens != moment:
            raise PausedError("outside the allowed hours", opens)
        if self._account:
            self._account.turn(moment.date())
            if self._account.left <= 0:
                days = 1 + -self._account.left // self.limits.bytes_per_day
                midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=days)
                raise PausedError("the day's bytes are used up", self.limits.opens(midnight))


def spans(hours: Sequence[tuple[int, int]]) -> list[str]:
    """Return spans of the day as people write them."""
    return [f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}" for start, end in hours]
