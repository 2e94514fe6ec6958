# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger tells of rollouts: which one is not finished, and how far it came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STARTED, WAVE, STOPPED, FINISHED = "rollout_started", "rollout_wave", "rollout_stopped", "rollout_finished"


@dataclass(frozen=True)
class Progress:
    """A rollout: its name, the hosts that it has brought to the release, the number of its last wave, all its hosts."""

    rollout: str
    done: frozenset[str] = frozenset()
    finished: int = 0
    fleet: frozenset[str] = frozenset()


def progress(ledger: Iterable[Mapping[str, Any]], serial: int) -> Progress:
    """Return the rollout that a run for the lock with this serial goes on with: the last one if it is not finished.

    Rollouts are called SERIAL.NUMBER, so that the slices of a job, which cannot ask each other, agree.
    """
    last = 0
    finished: set[str] = set()
    done: dict[str, dict[str, set[str]]] = {}
    waves: dict[str, int] = {}
    fleets: dict[str, set[str]] = {}
    for entry in ledger:
        name = str(entry.get("rollout") or "")
        number = name.removeprefix(f"{serial}.")
        if not name.startswith(f"{serial}.") or not number.isdecimal():
            continue
        if entry.get("host"):
            _note_host(done.setdefault(name, {}), entry)
            continue
        last = max(last, int(number))
        if entry.get("outcome") == FINISHED:
            finished.add(name)
        if entry.get("outcome") == STARTED:
            fleets.setdefault(name, set()).update(map(str, entry.get("hosts") or ()))
        if entry.get("outcome") == WAVE:
            waves[name] = max(waves.get(name, 0), _wave(entry))
    name = f"{serial}.{last}"
    if not last or name in finished:
        return Progress(f"{serial}.{last + 1}")
    return Progress(name, frozenset(done.get(name, ())), waves.get(name, 0), frozenset(fleets.get(name, ())))


def _note_host(done: dict[str, set[str]], entry: Mapping[str, Any]) -> None:
    """Note what a line says of a host in `done`, the releases that a rollout has brought by host.

    What a guard makes active is the same release again, or the one before, of which the host is not done.
    """
    host, release = str(entry["host"]), str(entry.get("release"))
    if entry.get("outcome") != "active":
        done.pop(host, None)
    elif entry.get("by") != "guard":
        done.setdefault(host, set()).add(release)
    elif release not in done.get(host, ()):
        done.pop(host, None)


def interrupted(ledger: Sequence[Mapping[str, Any]], serial: int) -> str:
    """Return the rollout whose last run ended without a word, as when its controller was killed; "" if none did."""
    rollout = progress(ledger, serial).rollout
    steps = [entry for entry in ledger if entry.get("rollout") == rollout and not entry.get("host")]

    def last(*outcomes: str) -> str:
        return max((str(entry["time"]) for entry in steps if entry.get("outcome") in outcomes), default="")

    return rollout if last(STARTED) > last(STOPPED, FINISHED) else ""


def _wave(entry: Mapping[str, Any]) -> int:
    number = entry.get("wave")
    return number if isinstance(number, int) else 0


def is_pending(ledger: Iterable[Mapping[str, Any]], serial: int | None) -> frozenset[str]:
    """Return the hosts of which the last line says that they are pending for this serial."""
    last = {str(entry["host"]): entry for entry in ledger if entry.get("host")}
    return frozenset(
        host for host, entry in last.items() if entry.get("outcome") == "pending" and entry.get("serial") == serial
    )
