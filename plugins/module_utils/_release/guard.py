# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a host: takes it back to the previous release if the new one does not stay up. No controller is needed.

It looks every GUARD_SECONDS (agent.py) and counts looks instead of reading a clock, which boards may not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import (
    GUARD_SECONDS,
    Transaction,
    release_as_recorded,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release

#: Restarts within CRASH_WINDOW seconds that make a crash loop.
CRASHES, CRASH_WINDOW = 3, 600
#: Seconds without readiness after which a release is given up, in its probation and later.
UNREADY_ON_PROBATION, UNREADY = 60, 300


@dataclass
class Watch:
    """What the guard has seen of the container of one release. Times are numbers of looks."""

    container: str = ""
    looks: int = 0
    restarts: int = 0
    killed_for_memory: bool = False
    restarted: list[int] = field(default_factory=list)
    unready: int = 0

    def see(self, container: Mapping[str, Any], ready: bool) -> None:
        """Take in one look at the container (as `docker container inspect` says)."""
        if container["Id"] != self.container:
            self.__init__(container["Id"])  # type: ignore[misc]  # all anew
        self.looks += 1
        count = int(container.get("RestartCount", 0))
        # The engine counts anew when it starts.
        self.restarted += [self.looks] * (count - self.restarts if count >= self.restarts else count)
        self.restarted = [look for look in self.restarted if (self.looks - look) * GUARD_SECONDS < CRASH_WINDOW]
        self.restarts = count
        self.killed_for_memory = bool(container["State"].get("OOMKilled"))
        self.unready = 0 if ready else self.unready + 1

    def verdict(self, probation_seconds: float) -> str:
        """Return why the release must go, empty if it may stay."""
        on_probation = self.looks * GUARD_SECONDS <= probation_seconds
        if self.killed_for_memory and on_probation:
            return "it was killed for needing more memory than it may use"
        if len(self.restarted) >= CRASHES:
            return f"it crashed {len(self.restarted)} times within {CRASH_WINDOW // 60} minutes"
        limit = UNREADY_ON_PROBATION if on_probation else UNREADY
        if self.unready * GUARD_SECONDS >= limit:
            return f"it has not been ready for {self.unready * GUARD_SECONDS} s"
        return ""


class Guard:
    """Looks after one runtime of a host."""

    def __init__(self, engine: DockerEngine, host_root: Path, runtime: str) -> None:
        self.engine = engine
        self.installed = InstalledRuntime(engine, host_root, runtime)
        self.transaction = Transaction(host_root, runtime)
        self.watch_file = self.installed.root / "guard.json"

    def look(self) -> str:
        """Look once and do what is needed; return what was done, empty for nothing."""
        active = self.installed.state().get("active")
        if not active or self.transaction.is_running():
            return ""
        if settled := self._release(active["id"]).settle():
            return settled
        container = self.engine.container(self.installed.active)
        if container is None:
            return ""
        watch = self._watch()
        watch.see(container, self._ready(active["id"]))
        reason = watch.verdict(float(self.installed.watch(active["id"]).get("probation_seconds", 0)))
        replace_file(self.watch_file, json.dumps(asdict(watch)).encode())
        return self._go_back(active["id"], reason) if reason else ""

    def _go_back(self, active: str, reason: str) -> str:
        """Go back to the previous release, unless that is one which was given up before: then this one stays."""
        previous = (self.installed.state().get("previous") or {}).get("id", "")
        recorded = self.installed.recorded(previous) if previous else None
        if recorded is None:
            return f"release {active[:12]} stays although {reason}: there is no release to go back to"
        if self.installed.history.refusal(recorded[0].attempt_id(previous)):
            return f"release {active[:12]} stays although {reason}: the previous one was given up before"
        self._release(active).roll_back(previous, check_mode=False, by="guard", reason=reason)
        return f"went back from release {active[:12]} to {previous[:12]}: {reason}"

    def _release(self, release_id: str) -> Release:
        return release_as_recorded(self.engine, self.installed, release_id)

    def _watch(self) -> Watch:
        try:
            return Watch(**json.loads(self.watch_file.read_text()))
        except (OSError, ValueError, TypeError):
            return Watch()

    def _ready(self, release_id: str) -> bool:
        recorded = self.installed.recorded(release_id)
        if recorded is None:
            return True  # of an older version of this collection: there is nothing to go back to
        return self._release(release_id).is_ready(recorded[0], release_id)


def look_after(host_root: Path) -> None:
    """Look once after all runtimes below `host_root`, and print what was done."""
    engine = DockerEngine(run_program)
    for runtime in InstalledRuntime(engine, host_root).names():
        try:
            done = Guard(engine, host_root, runtime).look()
        except FleetError as error:
            done = str(error)
        if done:
            print(f"{runtime}: {done}")
