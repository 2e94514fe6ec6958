# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a checked candidate takes the place of the release before it, and what is done about a run that was cut short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    is_confirmed,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import ports_of
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime


class Takeover:
    """The last steps of a transaction on one runtime. Whatever ends them, the old release serves or the new one does.

    `wait_until_ready` raises FleetError if a container does not become ready.
    """

    def __init__(self, installed: InstalledRuntime, wait_until_ready: Callable[[Container, str], None]) -> None:
        self.installed = installed
        self.engine = installed.engine
        self.wait_until_ready = wait_until_ready

    def take_over(self, container: Container, unneeded: Sequence[InstalledRuntime]) -> None:
        """Make the candidate the active container; of the `unneeded` runtimes, those with its ports yield."""
        yielding = [other for other in unneeded if other.ports() & ports_of(container.desired.listeners())]
        if container.hands_over and self.installed.shares_ports():
            self._hand_over(container, [other for other in yielding if not other.shares_ports()])
        else:
            self._stop_first(container, yielding)

    def recover(self) -> None:
        """Tidy what an interrupted run left: a previous release that has to come back or to go, a candidate.

        The previous one goes only when the new one is ready: after a restart of the engine both have just been started.
        """
        active, candidate, previous = self.installed.active, self.installed.candidate, self.installed.previous
        if self.engine.container(previous) is not None:
            container = self.engine.container(active)
            if container is not None and is_confirmed(container) and self._is_ready(container):
                self._retire(previous)
            else:
                if container is not None:
                    self._retire(active)
                self.engine.rename(previous, active)
                self.engine.set_restart_policy(active, "always")
                self.engine.start(active)
        if self.engine.container(candidate) is not None:
            self._retire(candidate)
        self.engine.remove_network(candidate)

    def _is_ready(self, active: Mapping[str, Any]) -> bool:
        """Return whether the active container becomes ready in the time that a release has for it."""
        release_id = active["Config"]["Labels"].get(RELEASE_LABEL, "")
        recorded = self.installed.recorded(release_id)
        if recorded is None:
            return True  # of an older version of this collection
        container = Container(self.engine, self.installed.root, recorded[0], release_id, self.installed.active)
        try:
            self.wait_until_ready(container, self.installed.active)
        except FleetError:
            return False
        return True

    def _hand_over(self, container: Container, blocking: Sequence[InstalledRuntime]) -> None:
        """Let the candidate serve beside the old release, on the same ports; then the old one drains and goes.

        Until it is confirmed, the new container is not started with the engine and the old one is: after a power cut
        the old release serves, afterwards the new one. `blocking` are other runtimes that cannot share their ports.
        """
        active, candidate, previous = self.installed.active, self.installed.candidate, self.installed.previous
        for other in blocking:
            self.engine.stop(other.active)
        try:
            container.activate(candidate)
        except FleetError:
            for other in blocking:
                self.engine.start(other.active)
            raise
        had_previous = self.engine.container(active) is not None
        if had_previous:
            self.engine.rename(active, previous)
        self.engine.rename(candidate, active)
        container.confirm(active)
        if had_previous:
            self._retire(previous)

    def _stop_first(self, container: Container, yielding: Sequence[InstalledRuntime]) -> None:
        """Stop the old release, then start the new one on its ports; on failure the old one comes back.

        For servers that cannot share their ports. The old container keeps its restart policy until the new one is
        ready, and the new one gets its policy only then: after a power cut in between, the engine itself starts the
        old release. Runtimes whose ports are needed are stopped and, on failure, started in the same way.
        """
        active, candidate, previous = self.installed.active, self.installed.candidate, self.installed.previous
        if not container.hands_over:
            container.remove(candidate)
        had_previous = self.engine.container(active) is not None
        for other in yielding:
            self.engine.stop(other.active)
        if had_previous:
            self.engine.stop(active)
            self.engine.rename(active, previous)
        try:
            if container.hands_over:
                container.activate(candidate)
                self.engine.rename(candidate, active)
                container.confirm(active)
            else:
                container.create(active, "active")
                self.engine.start(active)
                self.wait_until_ready(container, active)
                self.engine.set_restart_policy(active, "always")
        except FleetError:
            if not had_previous:
                self.engine.remove(active)
            self.recover()
            for other in yielding:
                self.engine.start(other.active)
            raise
        self.engine.remove(previous)

    def _retire(self, name: str) -> None:
        """Let a container finish what it has begun, and remove it."""
        self.engine.set_restart_policy(name, "no")
        self.engine.stop(name)
        self.engine.remove(name)
