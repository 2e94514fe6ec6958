# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard, and another server whose container the engine could not start: real containers, and no gates before."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import GUARD_SECONDS
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, ForeignServer
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import LOOKS_BETWEEN_TRIES, UNREADY, Guard
from ansible_collections.edgeml.fleet.plugins.module_utils._release.plan import describe
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.support.busybox import import_busybox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "late"
IMAGE = "127.0.0.1:5000/edgeml-test/late:local"  # nothing is fetched from there
ADDRESS = "192.0.2.80"
#: Says that it is ready, as a server of the protocol does, and knows nothing else.
SERVE = "mkdir -p /tmp/v2/health && echo ready > /tmp/v2/health/ready; trap exit TERM; httpd -f -p 8080 -h /tmp & wait"
LOOKS = UNREADY // GUARD_SECONDS


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run([*(["sudo"] if os.geteuid() else []), "ip", *arguments], check=check, capture_output=not check)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import_busybox(IMAGE, ["sh", "mkdir", "httpd"], ["/bin/sh"], tmp_path_factory.mktemp("image"))
    yield IMAGE
    subprocess.run(["docker", "image", "rm", "--force", IMAGE], check=False, capture_output=True)


@pytest.fixture
def guard(image: str, tmp_path: Path) -> Iterator[Guard]:
    """Of a host that has just booted: its engine has tried to start the release, in vain. Another one came before."""
    engine = DockerEngine(run_program)
    guard = Guard(engine, tmp_path, NAME)
    yield guard
    engine.remove(guard.installed.active)
    ip("address", "delete", f"{ADDRESS}/32", "dev", "lo", check=False)


def leave(guard: Guard, listen: str, command: tuple[str, ...], **watch: object) -> str:
    """Leave a release on the host as transactions do, its container created but not started; return its id."""
    installed = guard.installed
    server = ForeignServer(command, {}, 8080, None, None, "/models", "1000:1000")
    desired = Desired(IMAGE, 0, (), {"listen": {"rest": [listen]}}, server=server)
    release = desired.release_id()
    installed.record(desired, describe(desired, release), {"probation_seconds": 0, **watch})
    installed.commit(describe(desired, release), "")
    Container(guard.engine, installed.root, desired, release, installed.active).create(installed.active, "active")
    guard.engine.set_restart_policy(installed.active, "always")
    return release


def boot(guard: Guard, listen: str, *starts: tuple[str, ...]) -> list[str]:
    """Leave releases on the host as transactions do, one for each command, and start the last; return their ids."""
    releases = [leave(guard, listen, command) for command in starts]
    with pytest.raises(FleetError):
        guard.engine.start(guard.installed.active)
    return releases


def active(guard: Guard) -> str:
    return str(json.loads(guard.installed.state_file.read_text())["active"]["id"])


def answer(listen: str) -> str:
    """Return what a server says that is starting."""
    while True:
        with suppress(OSError), urllib.request.urlopen(f"http://{listen}/v2/health/ready", timeout=60) as told:
            return str(told.read().decode().strip())
        time.sleep(0.05)


def test_an_address_that_comes_late_is_waited_for(guard: Guard) -> None:
    """However long: no release is to blame for it. Then the container starts, and has its time to become ready."""
    listen = f"{ADDRESS}:{free_port()}"
    _before, release = boot(guard, listen, ("sh", "-c", f"true; {SERVE}"), ("sh", "-c", SERVE))
    assert {guard.look() for _ in range(2 * LOOKS)} == {""}
    ip("address", "add", f"{ADDRESS}/32", "dev", "lo")
    assert "which the engine could not start" in guard.look()
    assert answer(listen) == "ready"
    assert {guard.look() for _ in range(LOOKS)} == {""}
    assert active(guard) == release


def test_a_container_that_cannot_start_is_given_up(guard: Guard) -> None:
    """Its address is there: something else is wrong with it."""
    listen = f"127.0.0.1:{free_port()}"
    before, _release = boot(guard, listen, ("sh", "-c", SERVE), ("no-such-program",))
    told = [guard.look() for _ in range(LOOKS)]
    assert "cannot be started" in told[0]
    assert f"it has not been ready for {UNREADY} s" in told[-1]
    assert active(guard) == before
    assert answer(listen) == "ready"


DRIFT = {
    "removed": ("container", "rm", "--force"),
    "stopped": ("container", "stop", "--time", "1"),
    "edited": ("container", "update", "--restart", "no"),
}


@pytest.mark.parametrize("drift", DRIFT)
def test_drift_is_repaired_when_asked(guard: Guard, drift: str) -> None:
    listen = f"127.0.0.1:{free_port()}"
    release = leave(guard, listen, ("sh", "-c", SERVE), guard_repairs=True)
    guard.engine.start(guard.installed.active)
    assert answer(listen) == "ready"
    assert {guard.look() for _ in range(3)} == {""}
    subprocess.run(["docker", *DRIFT[drift], guard.installed.active], check=True, capture_output=True)
    assert guard.look().startswith(f"repaired release {release[:12]}: ")
    assert answer(listen) == "ready"
    assert active(guard) == release
    (entry,) = guard.installed.history.entries()
    assert (entry["outcome"], entry["by"]) == ("active", "guard")
    assert guard.installed.active in entry["reason"]
    assert {guard.look() for _ in range(3)} == {""}


def test_drift_is_left_to_the_next_run_otherwise(guard: Guard) -> None:
    leave(guard, f"127.0.0.1:{free_port()}", ("sh", "-c", SERVE))
    guard.engine.remove(guard.installed.active)
    assert {guard.look() for _ in range(3)} == {""}
    assert guard.engine.container(guard.installed.active) is None


def test_a_repair_that_fails_is_tried_again_later(guard: Guard) -> None:
    """Not at every look: each try costs the host a container."""
    leave(guard, f"127.0.0.1:{free_port()}", ("no-such-program",), guard_repairs=True)
    guard.engine.remove(guard.installed.active)
    told = [guard.look() for _ in range(LOOKS_BETWEEN_TRIES + 2)]
    assert "is not repaired (there is no container" in told[0]
    assert told[1:-1] == [""] * LOOKS_BETWEEN_TRIES
    assert told[-1] == told[0]
