# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A synchronization apart from who asked for it: attached to, taken over, refused, resumed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import agent
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.agent import Synchronization
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import export
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import PausedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import UnreachableError, UntrustedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._mirror.test_sync import deliverer, image, lock_of

Serve = Callable[[Callable[[Request], Answer]], Server]


def options(server: Server, root: Path, serial: int, entry: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "root": str(root),
        "store": {"address": server.address, "ca_file": server.ca_file},
        "bundle": None,
        "lock": lock_of(serial, entry),
        "architectures": ["amd64"],
        "keep_generations": 2,
        "signatures": {"mode": "ignored", "lock_signature": "", "trusted_keys": [], "signers_needed": 1,
                       "accept_older_lock": False},
        "needed": None,
        "in_use": [],
        "fallbacks": [],
        "limits": {},
        "parallel": 2,
        "patience": 0,
        "scrub": False,
        **more,
    }  # fmt: skip


def stuck(content: dict[str, bytes], digest: str, event: threading.Event) -> Callable[[Request], Answer]:
    """Deliver `content`, but the blob `digest` not before the event."""

    def answer(request: Request) -> Answer:
        if request.path.endswith(digest):
            event.wait()
        return deliverer(content)(request)

    return answer


def run(
    work: Synchronization, asked: dict[str, Any], report_after: float = 0, *, attach: bool = False
) -> dict[str, Any]:
    return work.synchronize(asked, report_after, attach=attach)


def raiser(error: FleetError) -> Callable[..., dict[str, Any]]:
    def fail(*_arguments: Any, **_options: Any) -> dict[str, Any]:
        raise error

    return fail


def wait_for_request(server: Server, digest: str) -> None:
    while not any(request.path.endswith(digest) for request in server.requests):
        time.sleep(0.02)


def wait_for_end(work: Synchronization) -> None:
    """A process leaves its result first and forgets its request then."""
    while work.is_running():
        time.sleep(0.02)


def test_it_goes_on_without_who_asked_and_is_attached_to(serve: Serve, tmp_path: Path, held: threading.Event) -> None:
    content, entry = image("a")
    layer = sha256_digest(b"a")
    server = serve(stuck(content, layer, held))
    asked = options(server, tmp_path, 1, entry)
    work = Synchronization(tmp_path)
    first = run(work, asked, 0.01)
    assert first["running"] is True
    wait_for_request(server, layer)
    assert work.is_running()
    again = run(work, asked, 0.01)  # another controller: no second process
    assert again["running"] is True
    assert len([request for request in server.requests if request.path.endswith(layer)]) == 1
    held.set()
    result = run(work, asked, attach=True)
    assert result["changed"] is True
    assert result["generation"] == 1
    # Attaching takes what has ended, and a run of its own looks anew.
    assert run(work, asked, attach=True)["changed"] is True
    assert run(work, asked)["changed"] is False
    assert oct(work.result_file.stat().st_mode & 0o777) == "0o600"
    wait_for_end(work)
    assert not work.request_file.exists()


def test_a_newer_lock_takes_over_and_an_older_one_is_refused(
    serve: Serve, tmp_path: Path, held: threading.Event
) -> None:
    first, second = image("a"), image("b")
    layer = sha256_digest(b"a")
    server = serve(stuck({**first[0], **second[0]}, layer, held))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 2, first[1]), 0.01)
    wait_for_request(server, layer)
    with pytest.raises(FleetError, match=r"to a newer lock is under way.*serial 1 in the lock, 2 under way"):
        run(work, options(server, tmp_path, 1, second[1]))
    assert run(work, options(server, tmp_path, 3, second[1]))["generation"] == 3
    assert (tmp_path / "current").readlink().name == "3"


def test_a_deliberate_step_back_takes_the_place_of_a_newer_lock_that_waits(serve: Serve, tmp_path: Path) -> None:
    first, second = image("a"), image("b")
    server = serve(deliverer({**first[0], **second[0]}))
    work = Synchronization(tmp_path)
    with pytest.raises(FleetError, match="outside the allowed hours"):
        run(work, options(server, tmp_path, 8, second[1], limits=closed_now()))
    back = options(server, tmp_path, 7, first[1])
    with pytest.raises(FleetError, match="to go back, set edgeml_accept_older_lock: true"):
        run(work, back)
    back["signatures"]["accept_older_lock"] = True
    assert run(work, back)["generation"] == 7


def test_a_failure_comes_back_with_its_parts(serve: Serve, tmp_path: Path) -> None:
    _content, entry = image("a")
    with pytest.raises(FleetError) as failed:
        run(Synchronization(tmp_path), options(serve(lambda _: Answer(404)), tmp_path, 1, entry))
    assert failed.value.what == "The registry does not hold this"


def test_what_was_killed_goes_on_after_a_start(serve: Serve, tmp_path: Path, held: threading.Event) -> None:
    content, entry = image("a")
    layer = sha256_digest(b"a")
    server = serve(stuck(content, layer, held))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 1, entry), 0.01)
    wait_for_request(server, layer)
    work.work(resumed=True)  # the timer's, while it runs: nothing to do
    assert not (tmp_path / "current").exists()
    os.kill(int(work.lock_file.read_text()), signal.SIGKILL)
    while work.is_running():
        time.sleep(0.02)
    held.set()
    work.work(resumed=True)
    assert (tmp_path / "current").readlink().name == "1"
    assert json.loads(work.result_file.read_text())["result"]["changed"] is True
    work.work(resumed=True)  # nothing is left to do


@pytest.mark.parametrize("error", [UnreachableError("nothing answers"), UntrustedError("the clock is wrong")])
def test_what_goes_on_by_itself_outlives_a_failure_that_passes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: FleetError
) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    asked = options(serve(deliverer(content)), tmp_path, 1, entry)
    with monkeypatch.context() as failing:
        failing.setattr(agent, "START_PATIENCE", 0)
        failing.setattr(agent, "perform", raiser(error))
        work.ask_later(asked)
        work.work(resumed=True)
        assert work.request_file.exists(), "the timer tries again"
        assert json.loads(work.result_file.read_text())["error"]["what"] == error.what
    work.work(resumed=True)
    assert (tmp_path / "current").readlink().name == "1"
    assert not work.request_file.exists()


def test_what_goes_on_after_its_hours_outlives_a_failure_that_passes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    asked = options(serve(deliverer(content)), tmp_path, 1, entry)
    steps: list[FleetError] = [PausedError("outside the allowed hours", datetime(2026, 1, 1)), UnreachableError("away")]
    monkeypatch.setattr(agent, "START_PATIENCE", 0)
    monkeypatch.setattr(agent, "perform", lambda *_, **__: raiser(steps.pop(0))())
    work.ask_later(asked)
    work.work()
    assert work.request_file.exists(), "who asked was told that it goes on by itself"


@pytest.mark.parametrize(
    ("error", "resumed"), [(UnreachableError("nothing answers"), False), (FleetError("older lock"), True)]
)
def test_what_is_refused_or_heard_of_goes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: FleetError, *, resumed: bool
) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    monkeypatch.setattr(agent, "START_PATIENCE", 0)
    monkeypatch.setattr(agent, "perform", raiser(error))
    work.ask_later(options(serve(deliverer(content)), tmp_path, 1, entry))
    work.work(resumed=resumed)
    assert not work.request_file.exists()


def closed_now() -> dict[str, Any]:
    """Return limits whose hours are not now."""
    now = time.localtime()
    return {"hours": [f"{(now.tm_hour + 2) % 24:02}:00-{(now.tm_hour + 3) % 24:02}:00"], "bytes_per_day": 1}


def test_who_asks_is_told_that_the_night_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    asked = options(serve(deliverer(content)), tmp_path, 1, entry, limits=closed_now())
    with pytest.raises(FleetError, match=r"on its way.*outside the allowed hours; 0 of \d+ bytes are here"):
        run(work, asked)
    assert work.is_running()  # it goes on by itself
    # An urgent run takes its place.
    assert run(work, {**asked, "limits": {**closed_now(), "urgent": True}})["generation"] == 1


def test_a_stick_uses_no_uplink(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    server = serve(deliverer(content))
    stick = tmp_path / "stick"
    export(stick, server.registry(), lock_of(1, entry), ["amd64"], write=True)
    asked = options(server, tmp_path / "mirror", 1, entry, bundle=str(stick), store=None, limits=closed_now())
    planned = agent.perform(asked, write=False)["plan"]["bill"]
    assert planned == {"seconds": None, "days": None, "mbit": None, "hours": []}
    assert agent.perform(asked, write=True)["changed"] is True


def test_a_stick_asks_no_neighbour_over_the_uplink(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    server = serve(deliverer(content))
    stick = tmp_path / "stick"
    export(stick, server.registry(), lock_of(1, entry), ["amd64"], write=True)
    (stick / "blobs" / "sha256" / sha256_digest(b"a").partition(":")[2]).unlink()
    server.requests.clear()
    neighbour = {"address": server.address, "ca_file": server.ca_file}
    asked = options(
        server, tmp_path / "mirror", 1, entry, bundle=str(stick), store=None, limits=closed_now(), fallbacks=[neighbour]
    )
    with pytest.raises(FleetError, match="The bundle does not hold"):
        agent.perform(asked, write=True)
    assert server.requests == []
