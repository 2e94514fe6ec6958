# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of each release on a host: a line of JSON for each try, on the disk before anybody is told."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import parse_object

#: How many tries a host remembers, at least; older refusals are kept beside them, half as many at most.
KEPT = 200

#: Outcomes after which the same release is not tried again unless it is forced.
REFUSALS = ("refused", "rolled_back")

Entry = Dict[str, Any]

#: What readers rely on; the other keys of an entry are younger.
_NEEDED = {"time", "release", "outcome", "reason"}
_TEXTS = (*_NEEDED, "runtime", "attempt", "by", "image")
_LISTS = ("models", "gates")
_PLACE = re.compile(r"([0-9a-f]{8})-([0-9]{6})")


class History:
    """The tries of one runtime, oldest first, in the file `path`.

    An entry is a mapping with ``time`` (UTC, ISO 8601), ``runtime``, ``release``, ``attempt`` (Desired.attempt_id),
    ``outcome`` (``active``, ``refused``, ``failed``, ``rolled_back``), ``reason``, ``by`` (``controller``, ``guard``,
    ``operator``), ``image``, ``models`` and ``gates``. ``place`` is MARK-NUMBER, the number of the entry in the history
    with this mark: it orders what the clock of a host does not.

    A way back adds two entries with the same ``by``: ``rolled_back`` for the release that it left, and after that
    ``active`` for the one that serves. So the last entry alone does not tell that a release was given up.
    """

    def __init__(self, path: Path, runtime: str) -> None:
        self.path = path
        self.runtime = runtime

    def entries(self) -> list[Entry]:
        """Return what is remembered. A line that a power cut has torn, or that is no entry, is left out."""
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [entry for entry in map(parse_object, lines) if _is_entry(entry)]

    def add(
        self,
        outcome: str,
        release: Mapping[str, Any],
        attempt: str,
        *,
        by: str,
        reason: str = "",
        gates: Sequence[Mapping[str, Any]] = (),
    ) -> Entry:
        """Remember what became of a `release` (its description) and return the entry."""
        models = [{key: model[key] for key in ("name", "version", "variant", "digest")} for model in release["models"]]
        entries = self.entries()
        entry: Entry = {
            "place": _place_after(entries),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "runtime": self.runtime,
            "release": release["id"],
            "attempt": attempt,
            "outcome": outcome,
            "reason": reason,
            "by": by,
            "image": release["image"],
            "models": models,
            "gates": list(gates),
        }
        line = json.dumps(entry, sort_keys=True) + "\n"
        if len(entries) < 2 * KEPT and self.path.exists():
            with self.path.open("ab") as file:
                # A torn last line must not swallow this one.
                file.write(line.encode() if self._ends_with_a_line() else b"\n" + line.encode())
                file.flush()
                os.fsync(file.fileno())
        else:
            refused = [one for one in self.refused() if one not in entries[-KEPT:]]
            kept = [*refused[-KEPT // 2 :], *entries[-KEPT:]]
            replace_file(self.path, "".join([*(json.dumps(one, sort_keys=True) + "\n" for one in kept), line]).encode())
        return entry

    def refusal(self, attempt: str) -> Entry | None:
        """Return why an attempt is not to be made again, None if nothing speaks against it."""
        return next((entry for entry in self.refused() if entry["attempt"] == attempt), None)

    def refused(self) -> list[Entry]:
        """Return the last refusal of each attempt that is still refused, oldest first.

        A try that failed for another reason says nothing of it.
        """
        judged = [entry for entry in self.entries() if entry.get("attempt") and entry["outcome"] != "failed"]
        last = {entry["attempt"]: entry for entry in judged}
        return [entry for entry in last.values() if entry["outcome"] in REFUSALS]

    def _ends_with_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _place_after(entries: Sequence[Entry]) -> str:
    """Return the place of the next entry; a history that has none yet gets its mark."""
    last = _PLACE.fullmatch(str(entries[-1].get("place"))) if entries else None
    if last is None:
        return f"{os.urandom(4).hex()}-000001"
    return f"{last.group(1)}-{int(last.group(2)) + 1:06}"


def _is_entry(content: Mapping[str, Any]) -> bool:
    return (
        set(content) >= _NEEDED
        and all(isinstance(content.get(key, ""), str) for key in _TEXTS)
        and all(isinstance(content.get(key, []), list) for key in _LISTS)
        and all(isinstance(one, dict) for key in _LISTS for one in content.get(key, ()))
    )


def refused_before(entry: Mapping[str, Any], where: str) -> FleetError:
    """Return the error for a release that this host has refused or left."""
    verb = "was rolled back" if entry["outcome"] == "rolled_back" else "was refused"
    return FleetError(
        f"This release {verb} here on {entry['time']} and is not tried again as it is",
        where=where,
        seen=f"release {entry['release'][:12]}: {entry['reason']}",
        remedy="change the release, or its objectives if they were wrong; to try the same once more run with "
        "-e edgeml_force=true",
    )


def no_way_back(entry: Mapping[str, Any], where: str) -> FleetError:
    """Return the error for a previous release that this host has refused, and that nobody has named."""
    return FleetError(
        f"The release before was refused here on {entry['time']}, so this host does not go back to it",
        where=where,
        seen=f"release {entry['release'][:12]}: {entry['reason']}",
        remedy=f"run the playbook edgeml.fleet.site with another release; to go back to it all the same run with "
        f"-e edgeml_release={entry['release'][:12]}",
    )


def stays_after_rollback(entry: Mapping[str, Any], runtime: str) -> str:
    """Return the warning for a host that has already gone back from its previous release."""
    return (
        f"The runtime {runtime} stays as it is: the release before, {entry['release'][:12]}, was rolled back here on "
        f"{entry['time']}; to serve it again run with -e edgeml_release={entry['release'][:12]}"
    )
