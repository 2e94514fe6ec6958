# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A try to bring a runtime to a release: what is written down of it, whatever it comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import RefusedError, Row
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import WAY_BACK_FILE, InstalledRuntime


@dataclass
class Try:
    """What a try has brought so far."""

    gates: list[Row] = field(default_factory=list)
    reason: str = ""


@contextmanager
def remembered(
    installed: InstalledRuntime,
    desired: Desired,
    after: dict[str, Any],
    by: str,
    way_back: Mapping[str, str] | None = None,
) -> Iterator[Try]:
    """Write down what becomes of a try, and clear away what a failed one has left.

    A `way_back` is on the disk (WAY_BACK_FILE) before the hand-over begins, and until the try is over.
    """
    history, attempt = installed.history, desired.attempt_id(after["id"])
    done = Try()
    make_directory(installed.root)
    end_way_back(installed)
    if way_back:
        with suppress(OSError):  # a full disk: going back matters more
            replace_file(installed.root / WAY_BACK_FILE, json.dumps(way_back, sort_keys=True).encode())
    try:
        yield done
    except FleetError as error:
        refused = isinstance(error, RefusedError)
        gates = error.gates if isinstance(error, RefusedError) else []
        outcome = "refused" if refused else "failed"
        history.add(outcome, after, attempt, by=by, reason=str(error), gates=gates)
        if refused:
            installed.prune(desired.image)
        end_way_back(installed)
        raise
    history.add("active", after, attempt, by=by, reason=done.reason, gates=done.gates)
    end_way_back(installed)


def way_back_to(installed: InstalledRuntime, release_id: str) -> dict[str, str] | None:
    """Return the way back to a release that a run which was cut short has begun, None if it was none."""
    begun = read_object(installed.root / WAY_BACK_FILE)
    return begun if begun.get("to") == release_id and {"left", "by", "reason"} <= set(begun) else None


def note_left(installed: InstalledRuntime, way_back: Mapping[str, str]) -> None:
    """Remember the release that a way back has left, so that it is not tried again."""
    recorded = installed.recorded(way_back["left"])
    if recorded is None:
        return  # of an older version of this collection
    desired, description = recorded
    attempt = desired.attempt_id(way_back["left"])
    installed.history.add("rolled_back", description, attempt, by=way_back["by"], reason=way_back["reason"])


def end_way_back(installed: InstalledRuntime) -> None:
    """Forget the way back that was under way."""
    (installed.root / WAY_BACK_FILE).unlink(missing_ok=True)
