# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Load, unload, reload: beside what serves, wholly or not at all, and the index tells the truth."""

import asyncio
import http.client
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.engine.served_model import ServedModel
from edgeml_runtime.errors import ConfigurationError, Failure
from edgeml_runtime.metrics import Metrics
from engines import Configured, configuration, described, failure_of, features, run, scaled
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save
from serving import Server, UnixConnection, ask

ROWS = [[1.0, 2.0]]


class Repository:
    """An engine whose configuration changes when the test says so."""

    def __init__(self, *models: dict[str, Any]) -> None:
        self.models = list(models)
        self.metrics = Metrics()
        self.engine = Engine(configuration(*models), self.metrics, self._read)

    def _read(self) -> tuple[ModelConfig, ...]:
        return configuration(*self.models).models

    def index(self) -> list[tuple[str, str, str, str]]:
        return [(line.name, line.version, line.state, line.reason) for line in self.engine.index()]

    async def factor(self, version: str = "") -> float:
        """What the model in service multiplies with."""
        return float((await self.engine.model("scaled", version).infer(features(ROWS)))[0][0][0])


@pytest.fixture
def without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load in this process at once: how models change places does not depend on the trial, which takes its time."""
    monkeypatch.setattr("edgeml_runtime.engine.trial.load_beside", partial(ServedModel, check=True))


async def repository(*models: dict[str, Any]) -> Repository:
    made = Repository(*models)
    await made.engine.start()
    return made


def test_a_new_version_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        it.models = [scaled(tmp_path, 3.0, "2.0.0")]
        await it.engine.load("scaled")
        assert it.index() == [("scaled", "2.0.0", "READY", "")]
        assert (await it.factor(), await it.factor("2.0.0")) == (3.0, 3.0)
        with pytest.raises(Exception, match=r"served in version 2\.0\.0, not '1\.0\.0'"):
            it.engine.model("scaled", "1.0.0")

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_the_first_of_several_versions_is_meant_when_none_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        first, second, third = (scaled(tmp_path, float(n), f"{n}.0.0") for n in (1, 2, 3))
        it = await repository(second, first)
        assert (await it.factor(), await it.factor("1.0.0"), await it.factor("2.0.0")) == (2.0, 1.0, 2.0)
        assert it.engine.versions("scaled") == ["2.0.0", "1.0.0"]
        kept = it.engine.model("scaled", "1.0.0")
        it.models = [first, third]
        await it.engine.reload()
        assert it.engine.model("scaled", "") is kept
        assert it.engine.versions("scaled") == ["1.0.0", "3.0.0"]
        assert [line[:3] for line in it.index()] == [("scaled", "1.0.0", "READY"), ("scaled", "3.0.0", "READY")]

    run(test)


def broken(entry: dict[str, Any]) -> dict[str, Any]:
    (Path(entry["path"]) / "model.onnx").write_bytes(b"no graph")
    return entry


def wrong(entry: dict[str, Any]) -> dict[str, Any]:
    """The golden cases after the first, which warms up, expect something else."""
    golden = Path(entry["path"]) / "golden"
    case = json.loads((golden / "first.json").read_text())
    case["outputs"][0]["data"] = [0.0, 0.0]
    (golden / "second.json").write_text(json.dumps(case))
    return entry


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(broken, "ONNX Runtime cannot load it"), (wrong, "second.json: output 'y' is 3.0 at [0, 0], expected 0.0")],
)
@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_a_failed_load_leaves_the_old_one_serving_and_says_why(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]], reason: str, version: str
) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        it.models = [spoil(scaled(tmp_path, 3.0, version))]
        for change in (it.engine.load("scaled"), it.engine.reload()):
            error = await failure_of(change)
            assert error.failure is Failure.INVALID
            assert reason in str(error)
            assert await it.factor() == 2.0
            lines = {line[1]: line for line in it.index()}
            assert lines["1.0.0"][2] == "READY"
            assert reason in lines[version][3]
            if version != "1.0.0":
                assert (lines[version][2], lines["1.0.0"][3]) == ("UNAVAILABLE", "")
                assert reason in str(await failure_of(it.factor(version)))
        assert it.metrics.exposition().decode().count("edgeml_model_info{") == 1
        it.models = [scaled(tmp_path, 4.0, version)]
        await it.engine.reload()
        assert it.index() == [("scaled", version, "READY", "")]
        assert await it.factor() == 4.0

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_of_several_versions_all_or_none_are_taken_over(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 1.0, "1.0.0"))
        it.models = [scaled(tmp_path, 2.0, "2.0.0"), broken(scaled(tmp_path, 3.0, "3.0.0"))]
        await failure_of(it.engine.load("scaled"))
        assert [line[1:3] for line in it.index()] == [
            ("1.0.0", "READY"),
            ("2.0.0", "UNAVAILABLE"),
            ("3.0.0", "UNAVAILABLE"),
        ]
        assert "another version was not loaded" in it.index()[1][3]
        assert await it.factor() == 1.0

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_the_index_while_a_model_loads(tmp_path: Path) -> None:
    async def test() -> None:
        it = Repository(scaled(tmp_path, 1.0))
        waiting = ("scaled", "1.0.0", "LOADING", "it is still being loaded")
        assert it.index() == [waiting]
        assert not it.engine.is_loaded("scaled", "")
        error = await failure_of(it.factor())
        assert (error.failure, str(error)) == (
            Failure.UNAVAILABLE,
            "model 'scaled' is not loaded: it is still being loaded",
        )
        await it.engine.start()
        it.models = [scaled(tmp_path, 2.0, "2.0.0")]
        loading = asyncio.create_task(it.engine.load("scaled"))
        while len(it.index()) == 1:
            await asyncio.sleep(0)
        assert it.index() == [("scaled", "1.0.0", "READY", ""), (*waiting[:1], "2.0.0", *waiting[2:])]
        assert await it.factor() == 1.0
        await loading

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_unload_and_load_again(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        await it.engine.unload("scaled")
        assert it.index() == [("scaled", "1.0.0", "UNAVAILABLE", "it was unloaded on request")]
        assert (await failure_of(it.factor())).failure is Failure.UNAVAILABLE
        assert not it.engine.is_loaded("scaled", "")
        await it.engine.load("scaled")
        assert await it.factor() == 2.0
        await it.engine.unload("scaled")
        await it.engine.reload()
        assert it.index() == [("scaled", "1.0.0", "READY", "")]
        for change in (it.engine.load("other"), it.engine.unload("other")):
            assert (await failure_of(change)).failure is Failure.NOT_FOUND

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_a_model_that_is_no_longer_configured(tmp_path: Path) -> None:
    async def test() -> None:
        other = scaled(tmp_path, 1.0, name="other")
        it = await repository(scaled(tmp_path, 2.0), other)
        it.models = [other]
        # A load of it fails, and it goes on until it is unloaded or the configuration is taken over.
        assert (await failure_of(it.engine.load("scaled"))).failure is Failure.NOT_FOUND
        assert ("scaled", "1.0.0", "READY", "") in it.index()
        assert await it.factor() == 2.0
        await it.engine.unload("scaled")
        assert it.index() == [("other", "1.0.0", "READY", "")]
        assert (await failure_of(it.factor())).failure is Failure.NOT_FOUND
        it.models = [scaled(tmp_path, 3.0)]
        await it.engine.reload()
        assert it.index() == [("scaled", "1.0.0", "READY", "")]
        with pytest.raises(Exception, match="'other' is not served here"):
            it.engine.model("other", "")

    run(test)


def test_a_configuration_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        def fail() -> tuple[ModelConfig, ...]:
            raise ConfigurationError("runtime.json", "models", "nothing", "a model")

        engine = Engine(configuration(scaled(tmp_path, 2.0)), Metrics(), fail)
        await engine.start()
        for change in (engine.load("scaled"), engine.reload()):
            error = await failure_of(change)
            assert error.failure is Failure.INVALID
            assert "the configuration cannot be read: runtime.json: models" in str(error)
        assert [line.state for line in engine.index()] == ["READY"]

    run(test)


def test_requests_under_way_finish_on_the_version_that_they_began_with(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        old = it.engine.model("scaled", "")
        old._inline_elements = -1
        go = threading.Event()
        closed = threading.Event()
        inner = old.model

        class Held:
            blocking = True
            inputs = inner.inputs
            outputs = inner.outputs

            def run(self, *arguments: Any) -> Any:
                assert go.wait(60)
                return inner.run(*arguments)

            def close(self) -> None:
                closed.set()

        old.model = Held()
        answers = [asyncio.create_task(it.factor()) for _ in range(20)]
        await asyncio.sleep(0)
        it.models = [scaled(tmp_path, 3.0, "2.0.0")]
        await it.engine.load("scaled")
        assert await it.factor() == 3.0
        assert not closed.is_set()
        go.set()
        assert await asyncio.gather(*answers) == [2.0] * 20
        await asyncio.to_thread(closed.wait, 60)
        # Whoever held on to the old one across the switch is told, not crashed.
        assert (await failure_of(old.infer(features(ROWS)))).failure is Failure.UNAVAILABLE

    run(test)


def test_a_load_goes_on_when_its_caller_leaves(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        it.models = [scaled(tmp_path, 3.0, "2.0.0")]
        caller = asyncio.create_task(it.engine.load("scaled"))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await it.engine.reload()  # waits its turn
        assert await it.factor() == 3.0

    run(test)


@pytest.mark.usefixtures("without_trial")
def test_changes_at_the_same_time_come_one_after_the_other(tmp_path: Path) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        changes = [it.engine.load("scaled"), it.engine.unload("scaled"), it.engine.reload(), it.engine.load("scaled")]
        await asyncio.gather(*changes)
        assert it.index() == [("scaled", "1.0.0", "READY", "")]
        assert await it.factor() == 2.0

    run(test)


@pytest.mark.parametrize(
    ("script", "how"), [("kill -KILL $$", "SIGKILL"), ("exit 7", "exit code 7")], ids=["killed", "ended"]
)
def test_a_model_that_ends_the_process_that_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, how: str
) -> None:
    async def test() -> None:
        it = await repository(scaled(tmp_path, 2.0))
        interpreter = tmp_path / "python"
        interpreter.write_text(f"#!/bin/sh\n{script}\n")
        interpreter.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(interpreter))
        error = await failure_of(it.engine.load("scaled"))
        assert f"the process that tried it out ended with {how}" in str(error)
        assert await it.factor() == 2.0

    run(test)


def folded(root: Path, version: str) -> dict[str, Any]:
    """``y`` = 2 * ``x``: the graph says so in a way that takes long to optimise."""
    size = 1200
    nodes = [helper.make_node("MatMul", ["identity", "identity"], ["product_0"])]
    nodes += [helper.make_node("MatMul", [f"product_{n}", "identity"], [f"product_{n + 1}"]) for n in range(6)]
    nodes += [
        helper.make_node("Slice", ["product_6", "begin", "end"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])],
        [
            numpy_helper.from_array(np.eye(size, dtype=np.float32), "identity"),
            numpy_helper.from_array(np.array([0, 0]), "begin"),
            numpy_helper.from_array(np.array([1, 1]), "end"),
        ],
    )
    directory = root / f"folded-{version}"
    directory.mkdir()
    return described(save(directory, "scaled", graph).path, "scaled", version, {})


def children(process: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def test_a_trial_ends_with_the_server(tmp_path: Path, start_server: Any) -> None:
    server: Server = start_server([Configured(scaled(tmp_path, 3.0))])
    server.wait_ready()
    server.change_config(models=[folded(tmp_path, "2.0.0")])
    server.process.send_signal(signal.SIGHUP)
    server.wait(lambda: bool(children(server.process.pid)))
    (trial,) = children(server.process.pid)
    server.process.kill()
    server.process.wait()
    while runs(trial):  # until the test's own time limit
        time.sleep(0.01)


def runs(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def request_body(rows: int) -> str:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [1.0] * (2 * rows)}
    return json.dumps({"inputs": [tensor]})


def post(connection: http.client.HTTPConnection, body: str) -> Any:
    connection.request("POST", "/v2/models/scaled/infer", body)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_the_server_answers_while_a_model_is_optimised(tmp_path: Path, start_server: Any) -> None:
    server: Server = start_server([Configured(scaled(tmp_path, 3.0))])
    server.wait_ready()
    server.change_config(models=[folded(tmp_path, "2.0.0")])
    status: list[int] = []
    reload = threading.Thread(
        target=lambda: status.append(ask(UnixConnection(server.admin_socket), "POST", "/reload").status)
    )
    connection = server.connect()
    answered = [time.monotonic()]
    reload.start()
    while reload.is_alive():
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        assert post(connection, request_body(1))[0] == 200
        answered.append(time.monotonic())
    reload.join()
    assert status == [200]
    # The optimisation takes nearly all of the time. A server that stands still for it has one such gap.
    longest = max(after - before for before, after in itertools.pairwise(answered))
    assert longest < (answered[-1] - answered[0]) / 2
    assert post(connection, request_body(1))[1]["outputs"][0]["data"] == [1.0, 1.0]
    connection.close()


def test_no_request_fails_and_none_is_mixed_while_versions_change(tmp_path: Path, start_server: Any) -> None:
    """Several connections ask all the time; every answer is wholly of one version, and both versions answer."""
    versions = [scaled(tmp_path, 2.0, "1.0.0"), scaled(tmp_path, 3.0, "2.0.0", batching={"max_size": 16})]
    factors = {"1.0.0": 2.0, "2.0.0": 3.0}
    server: Server = start_server([Configured(versions[0])])
    server.wait_ready()
    stop = threading.Event()
    failures: list[str] = []
    answers = dict.fromkeys(factors, 0)
    count = threading.Lock()

    def client(rows: int) -> None:
        connection = server.connect()
        body = request_body(rows)
        while not stop.is_set():
            try:
                status, answer = post(connection, body)
                version = answer["model_version"]
                if status != 200 or answer["outputs"][0]["data"] != [factors[version]] * (2 * rows):
                    failures.append(f"{status} {answer}"[:300])
            except Exception as error:
                failures.append(repr(error))
                return
            with count:
                answers[version] += 1

    clients = [threading.Thread(target=client, args=(rows,)) for rows in (1, 2, 3, 50, 1000)]
    for thread in clients:
        thread.start()
    for number in range(6):
        server.change_config(models=[versions[(number + 1) % 2]])
        answer = ask(UnixConnection(server.admin_socket), "POST", "/reload")
        assert answer.status == 200, answer.body
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert min(answers.values()) > 0
    assert sum(answers.values()) > 1000
    metrics = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    assert 'code="500"' not in metrics
    assert "Traceback" not in server.log
