# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a host's last successful converge, one file for each part of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.evidence import (
    KINDS,
    Item,
    differences,
    is_item,
    observe,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file


def compare(directory: Path, sections: Sequence[str], run: RunCommand) -> dict[str, dict[str, Any]]:
    """Return what was recorded, and what is not as it was then: {"documents", "notes", "drift"}.

    Returns
    -------
    documents : dict
        By section, the digest of the document that its last successful converge made true.
    notes : dict
        By section, what else was recorded with it.
    drift : dict
        By section, a line for each piece of evidence of which something else is seen now. A section that was never
        recorded, or whose record cannot be read, has one line that says so.
    """
    documents: dict[str, str] = {}
    drift: dict[str, list[str]] = {}
    notes: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    for section in sections:
        try:
            kept = json.loads((directory / f"{section}.json").read_text())
            known = {"evidence": list(kept["evidence"]), "seen": list(kept["seen"])}
            if unknown := {item["kind"] for item in known["evidence"]} - set(KINDS):
                raise ValueError(f"evidence of unknown kind {', '.join(sorted(unknown))}")
            if not all(map(is_item, known["evidence"])) or len(known["evidence"]) != len(known["seen"]):
                raise ValueError("evidence that was not recorded so")
            note = kept["note"]
            documents[section] = str(kept["document"])
            notes[section] = note
            records[section] = known
        except FileNotFoundError:
            drift[section] = ["no converge has been recorded on this host"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            drift[section] = [f"the record of the last converge cannot be read: {error}"]
    now = observe([item for known in records.values() for item in known["evidence"]], run)
    for section, known in records.items():
        count = len(known["evidence"])
        drift[section] = differences(known["evidence"], known["seen"], now[:count])
        now = now[count:]
    return {"documents": documents, "notes": notes, "drift": drift}


def record(directory: Path, section: str, document: str, evidence: Sequence[Item], note: Any, run: RunCommand) -> None:
    """Remember that `document` is what this host is now, with what is seen of it."""
    content = {
        "document": document,
        "note": note,
        "evidence": list(evidence),
        "seen": observe(evidence, run),
    }
    make_directory(directory)
    directory.chmod(0o700)  # digests of secrets are nobody else's
    replace_file(directory / f"{section}.json", json.dumps(content, indent=1).encode())


def forget(directory: Path, section: str, *, check_mode: bool) -> bool:
    """Remove the record of a section, and the directory with the last one; return whether there was one."""
    path = directory / f"{section}.json"
    present = path.exists()
    if present and not check_mode:
        path.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()
    return present
