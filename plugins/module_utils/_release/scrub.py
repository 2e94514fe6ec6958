# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what a host serves is still what its digests say: models and image layers, read anew from the disk.

What is damaged is written down beside the release (``damage.json``) and is a fault of it until it is healed: content
is fetched from the mirror again, and the release is handed over to a container that loads it afresh. Where the mirror
does not give it, the release serves on, and the next converge or scrub tries again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.image_layers import damaged
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import unpacked_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction, release_as_recorded
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime

#: What the last scrub has seen, below the runtime's root.
SCRUB_FILE = "scrub.json"


class Scrub:
    """Reads the content of one runtime's active and previous release, and heals it."""

    def __init__(self, engine: DockerEngine, host_root: Path, runtime: str) -> None:
        self.engine = engine
        self.installed = InstalledRuntime(engine, host_root, runtime)
        self.transaction = Transaction(host_root, runtime)

    def run(self) -> list[str]:
        """Look at all content once; return a line for each thing that was damaged, and what became of it."""
        state = self.installed.state()
        kept = [state[key]["id"] for key in ("active", "previous") if state.get(key)]
        if not kept or self.transaction.is_running():
            return []
        checked: dict[str, list[str]] = {}
        told = []
        for release_id in kept:
            recorded = self.installed.recorded(release_id)
            if recorded is None:
                continue
            desired = recorded[0]
            found = {"models": self._bad_models(desired, checked), "layers": self._bad_layers(desired, checked)}
            self.installed.note_damage(release_id, found)
            if any(found.values()):
                told += [f"release {release_id[:12]}: {text}" for text in self.installed.damage_of(desired, release_id)]
                told.append(self._heal(release_id, desired, is_active=release_id == kept[0]))
        note = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "found": told}
        replace_file(self.installed.root / SCRUB_FILE, json.dumps(note, sort_keys=True).encode())
        return told

    def _bad_models(self, desired: Desired, checked: dict[str, list[str]]) -> list[str]:
        for model in desired.models:
            if model.digest not in checked:
                bad = unpacked_digest(self.installed.models / model.directory_name) != model.digest
                checked[model.digest] = [model.directory_name] if bad else []
        return sorted({name for model in desired.models for name in checked[model.digest]})

    def _bad_layers(self, desired: Desired, checked: dict[str, list[str]]) -> list[str]:
        if desired.image not in checked:
            checked[desired.image] = [layer.diff_id for layer in damaged(self.engine, desired.image)]
        return checked[desired.image]

    def _heal(self, release_id: str, desired: Desired, *, is_active: bool) -> str:
        release = release_as_recorded(self.engine, self.installed, release_id)
        try:
            if is_active:
                release.converge(desired, check_mode=False, force=True, by="guard")
            else:
                release.restore(desired, release_id)
        except FleetError as error:
            return f"release {release_id[:12]}: it is not healed: {error}"
        return f"release {release_id[:12]}: healed from the mirror" + (
            ", and handed over to a container that has loaded it afresh" if is_active else ""
        )


def last_scrub(installed: InstalledRuntime) -> dict[str, Any]:
    """Return when the content was read last and what was found: {"time", "found"}; {} if it never was."""
    return read_object(installed.root / SCRUB_FILE)


def scrub(host_root: Path) -> None:
    """Look once at the content of all runtimes below `host_root`, and print what was found."""
    engine = DockerEngine(run_program)
    for runtime in InstalledRuntime(engine, host_root).names():
        try:
            told = Scrub(engine, host_root, runtime).run()
        except FleetError as error:
            told = [str(error)]
        except Exception as error:  # the other runtimes are read all the same
            told = [f"cannot be read: {error!r}"]
        for line in told:
            sys.stdout.write(f"{runtime}: {line}\n")
