# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's ledger: who has what since when, and why not. JSON lines beside the lock, on the controller.

A line is an entry of a device's history, or says that a device lacks its release (``pending``, ``failed``). Lines
without a host are the steps of a rollout. Files are merged by the union of their lines.

The clock of a device may be wrong. So its lines have their ``place`` in its history, and the time at which a controller
``heard`` of them: the former orders them, the latter tells since when if the device's clock cannot.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import encodable

Line = dict[str, Any]

#: What makes two lines the same event, however it was learned.
_IDENTITY = ("time", "host", "runtime", "release", "outcome", "wave", "place")
_EMPTY: Line = {
    "site": "", "runtime": "", "release": "", "outcome": "", "reason": "", "by": "controller", "image": "",
    "models": [], "serial": None, "rollout": "",
}  # fmt: skip
_KEYS = ("time", "host", "site", "runtime", "release", "outcome", "reason", "by", "image", "models", "serial",
         "rollout")  # fmt: skip
#: What only lines of devices have; those of older versions lack it.
_OF_DEVICES = ("place", "heard")
#: No device had anything of this collection before.
_EARLIEST = "2026-01-01T00:00:00Z"


def now() -> str:
    """Return the time as the ledger writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def line(host: str, outcome: str, **known: Any) -> Line:
    """Return a line with all its keys; those that are not given are empty."""
    return {**_EMPTY, "models": [], "time": now(), **_encodable(known), "host": host, "outcome": encodable(outcome)}


def _encodable(value: Any) -> Any:
    """Return JSON data all text of which can be written."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def lines_of_history(host: str, site: str, runtimes: Iterable[Mapping[str, Any]], heard: str = "") -> list[Line]:
    """Return the lines for what a host remembers, as the module runtime_release_info tells it (``heard`` now)."""
    return [
        line(
            host,
            str(entry.get("outcome")),
            site=site,
            heard=heard or now(),
            place=str(entry.get("place") or ""),
            **{key: entry.get(key) or "" for key in ("time", "runtime", "release", "reason", "by", "image")},
            models=[dict(model) for model in entry.get("models") or ()],
        )
        for runtime in runtimes
        for entry in runtime.get("history") or ()
    ]


def merge(*groups: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Return the union of lines, oldest first; of equal events the one that says most, as it was heard of first."""
    known: dict[tuple[str, ...], Line] = {}
    heard: dict[tuple[str, ...], str] = {}
    for group in groups:
        for entry in group:
            identity = _identity(entry)
            other = known.get(identity)
            if other is None or _rank(entry) > _rank(other):
                known[identity] = dict(entry)
            if first := entry.get("heard"):
                heard[identity] = min(str(first), heard.get(identity, str(first)))
    for identity, first in heard.items():
        known[identity]["heard"] = first
    lines = list(known.values())
    order = [(*one, canonical_json(entry)) for one, entry in zip(_order(lines), lines, strict=True)]
    return [lines[index] for index in sorted(range(len(lines)), key=order.__getitem__)]


def dated(lines: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return the lines with the times at which they happened, whatever their devices' clocks said."""
    return [{**entry, "time": order[0]} for order, entry in zip(_order(lines), lines, strict=True)]


def _identity(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key) or "") for key in _IDENTITY)


def _order(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bool, str, int]]:
    """Return for each line what it is sorted by: when it happened, its host, what a controller says of that last."""
    moments = [str(entry.get("time") or "") for entry in lines]
    positions = [0] * len(lines)
    by_runtime: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(lines):
        if entry.get("heard"):
            by_runtime.setdefault((str(entry["host"]), str(entry.get("runtime"))), []).append(index)
    for told in by_runtime.values():
        told.sort(key=_places(lines, told).__getitem__)
        latest, bounds = "~", []
        for index in reversed(told):
            latest = min(latest, str(lines[index]["heard"]))
            bounds.append(latest)
        earliest = _EARLIEST
        for position, index in enumerate(told):
            latest = bounds.pop()
            if not earliest <= moments[index] <= latest:
                moments[index] = latest
            earliest, positions[index] = moments[index], position
    return [
        (
            moments[index],
            str(entry.get("host") or ""),
            not entry.get("runtime") or entry.get("outcome") == "removed",
            str(entry.get("runtime") or ""),
            positions[index],
        )
        for index, entry in enumerate(lines)
    ]


def _places(lines: Sequence[Mapping[str, Any]], told: Sequence[int]) -> dict[int, tuple[str, str, str]]:
    """Return by index the place of each line of a runtime. A host that was made anew begins another history."""
    marks = {index: str(lines[index].get("place") or "").partition("-")[0] for index in told}
    began = {"": ""}  # what has no place is of an older version
    for index, mark in marks.items():
        began[mark] = min(began.get(mark, "~"), str(lines[index]["heard"]))
    return {
        index: (began[mark], str(lines[index].get("place") or ""), str(lines[index].get("time") or ""))
        for index, mark in marks.items()
    }


def _rank(entry: Mapping[str, Any]) -> tuple[int, bytes]:
    """Order versions of one event: what a device alone tells lacks the rollout and the lock's serial."""
    said = {key: value for key, value in entry.items() if key != "heard"}
    return sum(bool(entry.get(key)) for key in _KEYS), canonical_json(said)


def read(path: str) -> list[Line]:
    """Return the lines of a file, merged. A missing file is empty; what is no line of a ledger is left out.

    That may be a torn line, a mark of a merge, or what an editor has made of one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unusable(path, error) from error
    return merge(_parsed(text))


def _parsed(text: str) -> Iterator[Line]:
    for one in text.split("\n"):  # JSON may hold other separators of lines
        try:
            entry = json.loads(one, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and _is_line(entry := {**_EMPTY, **entry}):
            yield _encodable(entry) if "\\ud" in one.lower() else entry


def _refuse(constant: str) -> float:
    raise ValueError(f"JSON has no {constant}")


def _is_line(entry: Mapping[str, Any]) -> bool:
    """Return whether all has the type that readers count on."""
    return (
        all(isinstance(entry.get(key), str) for key in ("time", "host"))
        and all(isinstance(entry.get(key, ""), str) for key in _OF_DEVICES)
        and all(isinstance(entry[key], type(empty)) for key, empty in _EMPTY.items() if empty is not None)
        and all(isinstance(model, dict) and isinstance(model.get("name"), str) for model in entry["models"])
        and (entry["serial"] is None or type(entry["serial"]) is int)
    )


def append(path: str, lines: Sequence[Mapping[str, Any]]) -> int:
    """Add the lines that the file lacks, on the disk before this returns. Return their number."""
    try:
        wanted = merge(native(lines))
        if not wanted:
            return 0
        with _locked(path):
            lacking = missing(read(path), wanted)
            if lacking:
                _write(path, lacking)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    return len(lacking)


def note(path: str, lines: Sequence[Mapping[str, Any]], warn: Callable[[str], object]) -> int:
    """Do what `append` does, but only `warn` where the ledger cannot be written: the devices know all of it."""
    try:
        return append(path, lines)
    except FleetError as error:
        warn(str(error))
        return 0


def missing(known: Iterable[Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Return those of the lines whose events are not among the known ones."""
    events = {_identity(entry) for entry in known}
    return [dict(entry) for entry in lines if _identity(entry) not in events]


def _write(path: str, lines: Sequence[Line]) -> None:
    with Path(path).open("ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        # One write, and a torn last line must not swallow the first of these.
        file.write(b"\n" * torn + b"".join(canonical_json(entry) + b"\n" for entry in lines))
        file.flush()
        os.fsync(file.fileno())


def rebuild(path: str, lines: Iterable[Mapping[str, Any]]) -> int:
    """Write the union of the file and the lines, sorted, in place of the file. Return how many lines it gained."""
    try:
        with _locked(path):
            before = read(path)
            after = merge(before, native(list(lines)))
            text = b"".join(canonical_json(entry) + b"\n" for entry in after)
            target = Path(path)
            if text == (target.read_bytes() if target.exists() else b""):
                return 0
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(target)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    return len(after) - len(before)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other controllers on this machine out. The directory is locked, since the file may be replaced."""
    directory = Path(path).parent
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unusable(path: str, error: OSError | ValueError) -> FleetError:
    return FleetError(
        "The ledger cannot be read or written",
        where=str(getattr(error, "filename", None) or path),
        seen=getattr(error, "strerror", None) or str(error),
        remedy="set edgeml_ledger_file to a path that can be written on the controller",
    )
