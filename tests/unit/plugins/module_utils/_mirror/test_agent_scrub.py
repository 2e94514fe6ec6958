# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror that reads its content anew: what it heals, with what, and beside a synchronization."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import agent
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.agent import Synchronization
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._mirror.test_agent import (
    closed_now,
    options,
    run,
    stuck,
    wait_for_end,
    wait_for_request,
)
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._mirror.test_sync import deliverer, image

Serve = Callable[[Callable[[Request], Answer]], Server]


def damage(root: Path, data: bytes) -> Path:
    """Let a bit flip in the blob that holds `data`."""
    blob = root / "cas" / "sha256" / sha256_digest(data).partition(":")[2]
    blob.chmod(0o644)
    blob.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return blob


def test_a_scrub_heals_what_is_damaged_as_soon_as_the_store_answers(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    answers = [deliverer(content)]
    work = Synchronization(tmp_path)
    assert work.scrub() == [], "a mirror that is not there yet"
    asked = options(serve(lambda request: answers[0](request)), tmp_path, 1, entry)
    run(work, asked)
    assert oct(work.last_file.stat().st_mode & 0o777) == "0o600"
    assert work.scrub() == []
    layer = sha256_digest(b"a")
    blob = damage(tmp_path, b"a")
    answers[0] = lambda _: Answer(503)
    told = work.scrub()
    assert told[0] == layer
    assert told[1].startswith("what was damaged is not here again yet: ")
    assert not blob.exists(), "no host gets what is damaged"
    assert work.request_file.exists(), "the timer of the synchronization goes on"
    answers[0] = deliverer(content)
    assert work.scrub() == ["what was damaged is here again"]
    assert blob.read_bytes() == b"a"
    wait_for_end(work)
    assert not work.request_file.exists()
    assert work.scrub() == []


def test_what_holds_for_one_run_is_not_kept_for_scrubs(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    asked = options(serve(deliverer(content)), tmp_path, 1, entry)
    for_once = {
        "limits": {**closed_now(), "urgent": True},
        "signatures": {**asked["signatures"], "accept_older_lock": True},
    }
    run(work, {**asked, **for_once, "scrub": True, "patience": 5})
    kept = json.loads(work.last_file.read_text())
    assert kept["limits"] == {**closed_now(), "urgent": False}
    assert kept["signatures"] == asked["signatures"]
    assert (kept["scrub"], kept["patience"]) == (False, 5)


def test_a_scrub_heals_by_the_way_that_the_last_synchronization_took(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    layer = sha256_digest(b"a")
    asked = options(serve(deliverer(content)), tmp_path, 1, entry)
    with monkeypatch.context() as asking:
        asking.setenv("https_proxy", "http://127.0.0.1:9")  # the store is on this host, which is reached directly
        run(work, asked)
    wait_for_end(work)
    (tmp_path / "cas" / "sha256" / layer.partition(":")[2]).unlink()
    work.damaged_file.touch()
    # Only the kept proxy says that the store cannot be reached.
    kept = json.loads(work.last_file.read_text())
    kept["store"]["address"] = "store.invalid"
    work.last_file.write_text(json.dumps(kept))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    [told] = work.scrub()
    assert "through the proxy http://127.0.0.1:9" in told or "http://127.0.0.1:9, on the way to store.invalid" in told


def test_systemd_scrubs_a_mirror_after_each_boot_and_each_month(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: dict[str, str] = {}
    monkeypatch.setattr(agent, "install_units", installed.update)
    content, entry = image("a")
    server = serve(deliverer(content))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 1, entry))
    work.work()
    assert "OnBootSec=2min\nOnUnitInactiveSec=30d\n" in installed["edgeml-mirror-scrub.timer"]
    command = installed["edgeml-mirror-scrub.service"].split("ExecStart=")[1].splitlines()[0]
    assert command.endswith(f" {tmp_path} scrub")
    subprocess.run(shlex.split(command), check=True)


def test_a_synchronization_that_works_heals_what_a_scrub_found_meanwhile(
    serve: Serve, tmp_path: Path, held: threading.Event
) -> None:
    content, entry = image("a")
    layer = sha256_digest(b"a")
    server = serve(stuck(content, layer, held))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 1, entry), 0.01)
    wait_for_request(server, layer)
    [config] = [data for data in content.values() if data.startswith(b'{"architecture"')]
    while not (tmp_path / "cas" / "sha256" / sha256_digest(config).partition(":")[2]).exists():
        assert work.is_running()
    blob = damage(tmp_path, config)
    digest = sha256_digest(config)
    assert work.scrub() == [digest, "the synchronization under way copies again what is damaged"]
    assert blob.exists(), "nothing goes under a synchronization's hands"
    assert work.damaged_file.read_text() == f"{digest}\n"
    held.set()
    wait_for_end(work)
    assert blob.read_bytes() == config
    assert not work.damaged_file.exists()


def test_a_scrub_takes_away_what_is_damaged_while_hours_are_waited_for(serve: Serve, tmp_path: Path) -> None:
    (first, before), (second, after) = image("a"), image("b")
    server = serve(deliverer({**first, **second}))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 1, before))
    waiting = options(server, tmp_path, 2, after, limits=closed_now())
    with pytest.raises(FleetError, match="outside the allowed hours"):
        run(work, waiting)
    blob = damage(tmp_path, b"a")
    told = work.scrub()
    assert told == [sha256_digest(b"a"), "the synchronization under way copies again what is damaged"]
    assert not blob.exists(), "no host gets what is damaged"
    running = work.running_request()
    assert running is not None and running["options"] == waiting, "it is not interrupted"
    work.stop()  # it would wait until its hours come
    assert not work.is_running()


def test_what_cannot_be_taken_away_yet_is_noted(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    work = Synchronization(tmp_path)
    run(work, options(serve(deliverer(content)), tmp_path, 1, entry))
    wait_for_end(work)
    blob = damage(tmp_path, b"a")
    layer = sha256_digest(b"a")
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = work.scrub()
    assert told[0] == layer
    assert blob.exists()
    assert work.damaged_file.read_text() == f"{layer}\n"
    assert work.scrub()[-1] == "what was damaged is here again"
    assert blob.read_bytes() == b"a"
    assert not work.damaged_file.exists()


def test_a_scrub_leaves_a_request_that_goes_on_by_itself(serve: Serve, tmp_path: Path) -> None:
    (first, before), (second, after) = image("a"), image("b")
    server = serve(deliverer({**first, **second}))
    work = Synchronization(tmp_path)
    run(work, options(server, tmp_path, 1, before))
    wait_for_end(work)
    work.ask_later(options(server, tmp_path, 2, after))
    damage(tmp_path, b"a")
    assert work.scrub()[1] == "the synchronization under way copies again what is damaged"
    work.work(resumed=True)
    assert (tmp_path / "current").readlink().name == "2"
    assert not work.damaged_file.exists()
