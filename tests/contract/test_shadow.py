# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate of live requests between two real runtimes, one of them under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import wait_until_ready
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import RELEASE_LABEL, Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    SOCKET_DIRECTORY,
    Desired,
    Model,
    Shadow,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import Gates, RefusedError, Row
from ansible_collections.edgeml.fleet.tests.quickstart.faulty_models import make_model

REPOSITORY = Path(__file__).parents[2]
ALL = Shadow(share=1, seconds=60, requests=40, max_different=0.01)
ACTIVE, CANDIDATE = "active", "candidate"


class Processes(DockerEngine):
    """Two runtimes that are processes of this machine, each with its sockets in a directory of its name."""

    def __init__(self, root: Path) -> None:
        super().__init__(run_program)
        self.root = root
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start_runtime(self, name: str, model: Model) -> None:
        directory = self.root / name
        directory.mkdir()
        listen = {kind: [f"unix:{directory}/{kind}.sock"] for kind in ("rest", "grpc", "admin")}
        path = self.root / "models" / model.directory_name
        described = json.loads((path / "model.json").read_text())
        named = {"name": model.name, "version": model.version}
        (path / "model.json").write_text(json.dumps({**described, **named}))
        served = [{**named, "path": str(path)}]
        (directory / "runtime.json").write_text(json.dumps({"listen": listen, "models": served}))
        command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(directory / "runtime.json")]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "runtime" / "src")}
        with (directory / "log").open("wb") as log:
            self.running[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        with connect(f"http+unix://{directory}/rest.sock", timeout=60) as client:
            wait_until_ready(client, 120)

    def container(self, name: str) -> dict[str, Any] | None:
        if name not in self.running:
            return None
        code = self.running[name].poll()
        return {
            "State": {"Running": code is None, "ExitCode": code},
            "Config": {"Labels": {RELEASE_LABEL: name}},
            "Mounts": [{"Source": str(self.root / name), "Destination": SOCKET_DIRECTORY}],
        }

    def logs(self, name: str, lines: int = 20) -> str:
        return (self.root / name / "log").read_text()[-500:]

    def processes(self, name: str) -> list[int]:
        return [self.running[name].pid]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Processes]:
    engine = Processes(tmp_path)
    engine.start_runtime(ACTIVE, make_model(tmp_path))
    yield engine
    for process in engine.running.values():
        process.kill()
        process.wait()


def judge(engine: Processes, *models: Model) -> list[Row]:
    """Return the rows of live requests; the candidate passes all other gates."""
    desired = Desired("image", 0, models, {})
    gates = Gates(Container(engine, engine.root, desired, CANDIDATE, ACTIVE), CANDIDATE, 60)
    return [row for row in gates.check() if row["gate"] == "shadow"]


@contextmanager
def clients(engine: Processes) -> Iterator[list[str]]:
    """Clients of the release that serves, over REST and gRPC, who ask for what no golden case has."""
    over = threading.Event()
    failed: list[str] = []

    def ask(scheme: str, socket: str) -> None:
        with connect(f"{scheme}+unix://{engine.root}/{ACTIVE}/{socket}", timeout=60) as client:
            value = 0.0
            while not over.is_set():
                value -= 1
                try:
                    (answer,) = client.infer("double", "", [Tensor.from_values("x", "FP32", [1], [value])])
                    if answer.values() != [2 * value]:
                        failed.append(f"{answer.values()} for {value}")
                except FleetError as error:
                    failed.append(str(error))
                over.wait(0.005)

    threads = [threading.Thread(target=ask, args=way) for way in (("http", "rest.sock"), ("grpc", "grpc.sock"))]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_candidate_that_answers_as_before_passes(engine: Processes) -> None:
    model = replace(make_model(engine.root, options={"queue": 4}), version="2.0.0", shadow=ALL)
    engine.start_runtime(CANDIDATE, model)
    with clients(engine) as failed:
        share, ratio = judge(engine, model)
    assert failed == []
    assert (share["measured"], share["allowed"], share["unit"], share["passed"]) == (0, 0.01, "share", True)
    assert share["note"].startswith("40 of ")
    assert (ratio["unit"], ratio["allowed"], ratio["passed"]) == ("ratio", None, True)
    assert ratio["measured"] > 0


@pytest.mark.parametrize(
    ("fault", "settings", "reason", "note"),
    [
        ("wrong elsewhere", {}, "100.0% of live requests unlike", "40 differ, 0 fail; output 'y' by up to 2"),
        ("fails elsewhere", {}, "100.0% of live requests unlike", "0 differ, 40 fail"),
        ("weary", {"max_regression": 5.0}, "times as slow for live requests", "0 differ, 0 fail"),
    ],
)
def test_a_candidate_that_fails_on_live_requests_alone_is_refused(
    engine: Processes, fault: str, settings: dict[str, Any], reason: str, note: str
) -> None:
    model = replace(make_model(engine.root, fault, **settings), shadow=ALL)
    engine.start_runtime(CANDIDATE, model)
    with clients(engine) as failed, pytest.raises(RefusedError, match=reason) as caught:
        judge(engine, model)
    assert failed == []
    rows = [row for row in caught.value.gates if row["gate"] == "shadow"]
    assert [row["passed"] for row in rows if row["unit"] == ("ratio" if settings else "share")] == [False]
    assert note in rows[0]["note"]
    assert [row["gate"] for row in caught.value.gates if not row["passed"]] == ["shadow"]


def test_a_candidate_that_dies_of_a_live_request_is_refused(engine: Processes) -> None:
    model = replace(make_model(engine.root, "poison"), shadow=ALL)
    engine.start_runtime(CANDIDATE, model)
    with clients(engine) as failed, pytest.raises(RefusedError, match="ended with code 3"):
        judge(engine, model)
    assert failed == []


@pytest.mark.parametrize(
    ("served_as", "note"),
    [
        ("double", "0 of 0 live requests: 0 differ, 0 fail; fewer than 20 say nothing of the candidate"),
        ("other", "not compared: the release that serves has no such model"),
    ],
)
def test_who_is_not_asked_says_nothing(engine: Processes, served_as: str, note: str) -> None:
    model = replace(make_model(engine.root), name=served_as, shadow=replace(ALL, seconds=0.5))
    engine.start_runtime(CANDIDATE, model)
    (row,) = judge(engine, model)
    assert (row["measured"], row["passed"], row["note"]) == (None, True, note)


def test_nothing_is_compared_where_nothing_serves(engine: Processes) -> None:
    model = replace(make_model(engine.root), shadow=ALL)
    engine.start_runtime(CANDIDATE, model)
    engine.running[ACTIVE].kill()
    engine.running[ACTIVE].wait()
    (row,) = judge(engine, model)
    assert (row["measured"], row["passed"]) == (None, True)
    assert row["note"] == "not compared: no release of this runtime serves"
    del engine.running[ACTIVE]
    assert judge(engine, model) == []


def test_it_takes_no_longer_than_it_may(engine: Processes) -> None:
    """However slow the candidate: what was asked until then says what it says."""
    model = replace(make_model(engine.root, "weary"), shadow=replace(ALL, seconds=2, requests=1000))
    engine.start_runtime(CANDIDATE, model)
    with clients(engine) as failed:
        share, *_ = judge(engine, model)
    assert failed == []
    assert int(share["note"].split()[0]) <= 2 / 0.15 + 1
    assert share["measured"] is None
    deadline = time.monotonic() + 60
    while Container(engine, engine.root, Desired("image", 0, (), {}), CANDIDATE, ACTIVE).ask_admin(
        ACTIVE, "GET", "/sample"
    )[0] != {"models": {}}:
        assert time.monotonic() < deadline
