# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a host: takes it back to the previous release if the new one does not stay up. No controller is needed.

It looks every GUARD_SECONDS (agent.py) and counts looks instead of reading a clock, which boards may not have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, SeenOnce
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import (
    GUARD_SECONDS,
    Transaction,
    release_as_recorded,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    METRICS_SOCKET,
    lacks_address,
    mount_source,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import SOCKET_DIRECTORY, Desired
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.objectives import are_whole, judge, read_metrics
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import OBJECTIVE_MINUTES, Release

#: Restarts within CRASH_WINDOW seconds that make a crash loop.
CRASHES, CRASH_WINDOW = 3, 600
#: Seconds without readiness after which a release is given up, in its probation and later.
UNREADY_ON_PROBATION, UNREADY = 60, 300
#: Looks that the guard lets pass after a repair or a way back that failed, before it tries again.
LOOKS_BETWEEN_TRIES = 20


@dataclass
class Watch:
    """What the guard has seen of the container of one release. Times are numbers of looks."""

    container: str = ""
    looks: int = 0
    restarts: int = 0
    killed_for_memory: bool = False
    restarted: list[int] = field(default_factory=list)
    unready: int = 0
    #: By model: what `objectives.judge` keeps.
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Looks until a repair is tried again.
    repair_in: int = 0
    #: Looks until a way back is tried again.
    go_back_in: int = 0

    def see(self, container: Mapping[str, Any], ready: bool) -> None:
        """Take in one look at the container (as `docker container inspect` says)."""
        count = int(container.get("RestartCount", 0))
        if container["Id"] != self.container:
            # A container that came since the last look is new. Without any look before, its restarts may be old ones.
            old = 0 if self.container else count
            self.__init__(container["Id"], restarts=old)  # type: ignore[misc]  # all anew
        self.looks += 1
        # The engine counts anew when it starts.
        self.restarted += [self.looks] * (count - self.restarts if count >= self.restarts else count)
        self.restarted = [look for look in self.restarted if (self.looks - look) * GUARD_SECONDS < CRASH_WINDOW]
        self.restarts = count
        self.killed_for_memory = bool(container["State"].get("OOMKilled"))
        self.unready = 0 if ready else self.unready + 1

    def verdict(self, probation_seconds: float, objective_minutes: float = 0) -> str:
        """Return why the release must go, empty if it may stay."""
        on_probation = self.looks * GUARD_SECONDS <= probation_seconds
        if self.killed_for_memory and on_probation:
            return "it was killed for needing more memory than it may use"
        if len(self.restarted) >= CRASHES:
            return f"it crashed {len(self.restarted)} times within {CRASH_WINDOW // 60} minutes"
        limit = UNREADY_ON_PROBATION if on_probation else UNREADY
        if self.unready * GUARD_SECONDS >= limit:
            return f"it has not been ready for {self.unready * GUARD_SECONDS} s"
        for seen in self.latency.values():
            if objective_minutes and seen["missed"] * GUARD_SECONDS >= objective_minutes * 60:
                return f"it has missed an objective for {objective_minutes:g} minutes: {seen['why']}"
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
        seen = InstalledRuntime(SeenOnce(self.engine), self.installed.host_root, self.installed.name)
        if seen.is_unsettled() and (settled := self._release(active["id"]).settle()):
            return settled
        watch = self._watch()
        settings = seen.watch(active["id"])
        recorded = seen.recorded(active["id"])
        if recorded and settings.get("guard_repairs") and (repaired := self._repair(seen, watch, recorded[0], active)):
            return repaired
        container = seen.engine.container(seen.active)
        if container is None:
            return ""
        if is_stopped_by_hand(container):
            watch.unready = 0
            self._remember(watch)
            return ""
        started = ""
        if recorded and not container["State"]["Running"] and container["State"].get("Error"):
            # The engine could not start it, and tries once at boot: the release is not to blame for what is missing.
            if lacks_address(recorded[0].listeners()):
                return ""
            started = self._start(seen.active)
        # One of an older version of this collection has nothing to go back to.
        watch.see(container, recorded is None or self._ready(seen, recorded[0], active["id"]))
        sockets = mount_source(container, SOCKET_DIRECTORY)
        if recorded and sockets:
            judge(recorded[0].models, watch.latency, read_metrics(Path(sockets) / METRICS_SOCKET))
        reason = watch.verdict(
            float(settings.get("probation_seconds", 0)), float(settings.get("objective_minutes", OBJECTIVE_MINUTES))
        )
        waits = watch.go_back_in > 0
        watch.go_back_in -= waits
        self._remember(watch)
        return self._go_back(watch, active["id"], reason) if reason and not waits else started

    def _start(self, container: str) -> str:
        try:
            self.engine.start(container)
        except FleetError as error:
            return str(error)
        return f"started the container {container}, which the engine could not start at boot"

    def _repair(self, seen: InstalledRuntime, watch: Watch, desired: Desired, active: Mapping[str, Any]) -> str:
        """Make the release anew if what is on the host is not what was committed; a container that fails is not that.

        Returns what was done, empty for nothing. A repair that fails is tried again after a while.
        """
        faults = release_as_recorded(seen.engine, seen, active["id"]).drift(desired, active["id"])
        container = seen.engine.container(seen.active)
        could_not_start = container is not None and container["State"].get("Error")
        if not faults or could_not_start:
            return ""
        if watch.repair_in:
            watch.repair_in -= 1
            self._remember(watch)
            return ""
        why = "; ".join(faults)
        try:
            self._release(active["id"]).converge(desired, check_mode=False, force=True, by="guard")
        except (FleetError, OSError) as error:
            watch.repair_in = LOOKS_BETWEEN_TRIES
            self._remember(watch)
            return f"release {active['id'][:12]} is not repaired ({why}): {error}"
        return f"repaired release {active['id'][:12]}: {why}"

    def _go_back(self, watch: Watch, active: str, reason: str) -> str:
        """Go back to the previous release, unless that is one which was given up before: then this one stays.

        A way back that fails is tried again after a while.
        """
        previous = (self.installed.state().get("previous") or {}).get("id", "")
        recorded = self.installed.recorded(previous) if previous else None
        if recorded is None:
            return f"release {active[:12]} stays although {reason}: there is no release to go back to"
        if self.installed.history.refusal(recorded[0].attempt_id(previous)):
            return f"release {active[:12]} stays although {reason}: the previous one was given up before"
        try:
            self._release(active).roll_back(previous, check_mode=False, by="guard", reason=reason)
        except (FleetError, OSError) as error:
            watch.go_back_in = LOOKS_BETWEEN_TRIES
            self._remember(watch)
            return f"release {active[:12]} stays although {reason}: {error}"
        return f"went back from release {active[:12]} to {previous[:12]}: {reason}"

    def _release(self, release_id: str) -> Release:
        return release_as_recorded(self.engine, self.installed, release_id)

    def _remember(self, watch: Watch) -> None:
        """Keep what was seen for the next look. Where the disk is full, that one goes by what was kept before."""
        with suppress(OSError):
            replace_file(self.watch_file, json.dumps(asdict(watch)).encode())

    def _watch(self) -> Watch:
        kept, anew = read_object(self.watch_file), asdict(Watch())
        if not all(isinstance(kept.get(name, value), type(value)) for name, value in anew.items()):
            return Watch()
        watch = Watch(**{name: kept[name] for name in anew if name in kept})
        return watch if all(isinstance(look, int) for look in watch.restarted) and are_whole(watch.latency) else Watch()

    @staticmethod
    def _ready(seen: InstalledRuntime, desired: Desired, release_id: str) -> bool:
        return release_as_recorded(seen.engine, seen, release_id).is_ready(desired, release_id)


def is_stopped_by_hand(container: Mapping[str, Any]) -> bool:
    """Return whether an operator or another program has stopped, killed or paused a container.

    One that ends by itself is started again by the engine, which says that it restarts it, or why it could not.
    """
    state = container["State"]
    if state.get("Paused"):
        return True
    is_of_its_own = state["Running"] or state.get("Restarting") or state.get("Error") or state.get("OOMKilled")
    return not is_of_its_own and container["HostConfig"]["RestartPolicy"]["Name"] == "always"


def look_after(host_root: Path) -> None:
    """Look once after all runtimes below `host_root`, and print what was done."""
    engine = DockerEngine(run_program)
    for runtime in InstalledRuntime(engine, host_root).names():
        try:
            done = Guard(engine, host_root, runtime).look()
        except FleetError as error:
            done = str(error)
        except Exception as error:  # the other runtimes are watched all the same
            done = f"cannot be watched: {error!r}"
        if done:
            sys.stdout.write(f"{runtime}: {done}\n")
