# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a container of a release says that it is ready, and for how long it is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import RefusedError, not_started


def says_ready(container: Container, name: str) -> bool:
    """Return whether the container `name` answers, and says that it is ready."""
    try:
        with connect(container.endpoint(name, "rest"), timeout=5) as client:
            return bool(client.ready())
    except FleetError:
        return False


def wait_until(is_ready: Callable[[], bool], container: Container, name: str, seconds: float) -> None:
    """Return when the container `name` is ready; raise FleetError if it ends, or is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        state = (container.engine.container(name) or {"State": {"Running": False, "ExitCode": None}})["State"]
        # One that ends will end again; one that only takes long may be quicker another time.
        if not state["Running"]:
            raise not_started(container, name, state)
        if time.monotonic() > deadline:
            raise FleetError(
                "The new release does not become ready",
                where=f"container {name}",
                seen=f"not ready after {seconds:.0f} s; its last words: {container.engine.logs(name) or 'none'}",
                remedy="correct the model or its configuration, or give it more time with "
                "inference_runtime_start_timeout; the release that served before still serves",
            )
        time.sleep(0.1)


@contextmanager
def blameless_without(engine: DockerEngine) -> Iterator[None]:
    """Raise FleetError for a candidate that is refused in here while its engine was stopped, and took it along."""
    before = engine.process()
    try:
        yield
    except RefusedError as error:
        if engine.process() == before:
            raise
        raise FleetError(
            "The engine was stopped while the new release was tried",
            where=error.where,
            seen=f"{error.what} ({error.seen})",
            remedy="run again: the release is not refused for that",
        ) from error
