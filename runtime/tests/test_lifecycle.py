# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Start, readiness, slow models, and stopping without losing a request."""

import http.client
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import ModelDirectory, repeated_product
from serving import Server, features_message, features_request, steps_message, steps_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="session")
def steps_of_a_second(server: Server) -> int:
    """How many steps of the slow model take about a second here and now."""
    steps = 1000
    while True:
        started = time.monotonic()
        assert server.infer("repeated_product", steps_request(steps)).status == 200
        seconds = time.monotonic() - started
        if seconds > 0.2:
            return int(steps / seconds)
        steps *= 4


def in_background(call: Callable[[], Any]) -> "Future[Any]":
    executor = ThreadPoolExecutor(1)
    future = executor.submit(call)
    executor.shutdown(wait=False)
    return future


def wait_in_flight(server: Server, count: int = 1) -> None:
    """Until the slow model computes: the server's process uses the processor."""
    ticks = Path(f"/proc/{server.process.pid}/stat")

    def used() -> int:
        fields = ticks.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    while used() < before + 5 * count:
        time.sleep(0.02)


def test_health_answers_while_a_model_computes(server: Server, steps_of_a_second: int) -> None:
    slow = in_background(lambda: server.infer("repeated_product", steps_request(2 * steps_of_a_second)))
    wait_in_flight(server)
    answered = 0
    while not slow.done():
        assert server.rest("GET", "/v2/health/live").status == 200
        assert server.rest("GET", "/v2/health/ready").status == 200
        assert server.grpc("ServerLive", messages.ServerLiveRequest()).live
        assert server.infer("perceptron", features_request(ROWS)).status == 200
        answered += not slow.done()
    assert slow.result().json["outputs"][0]["data"] == [1.0]
    assert answered > 3


def test_not_ready_before_the_models_are_loaded(start_server: Any, tmp_path: Path, steps_of_a_second: int) -> None:
    slow = repeated_product(tmp_path, 2 * steps_of_a_second)
    server = start_server([slow])
    server.wait(lambda: server.rest("GET", "/v2/health/live").status == 200)
    ready = server.rest("GET", "/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"ready": False})
    assert not server.grpc("ServerReady", messages.ServerReadyRequest()).ready
    answer = server.rest("GET", "/v2/models/repeated_product/ready")
    assert (answer.status, answer.json["ready"]) == (503, False)
    assert server.rest("GET", "/v2/models/repeated_product").status == 503
    assert server.infer("repeated_product", steps_request(1)).status == 503
    assert server.grpc_error("ModelInfer", steps_message(1))[0] == "UNAVAILABLE"
    assert server.rest("GET", "/v2/models/other").status == 404
    server.wait_ready()
    assert server.infer("repeated_product", steps_request(1)).status == 200


def test_stop_while_loading(start_server: Any, tmp_path: Path, steps_of_a_second: int) -> None:
    server = start_server([repeated_product(tmp_path, 1000 * steps_of_a_second)])
    server.wait_listening()
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_finishes_requests_in_flight(
    start_server: Any, model_directories: dict[str, ModelDirectory], steps_of_a_second: int, number: signal.Signals
) -> None:
    server = start_server(list(model_directories.values()))
    server.wait_ready()
    idle = server.connect()
    idle.request("GET", "/v2/health/live")
    idle.getresponse().read()
    in_flight = [
        in_background(lambda: server.infer("repeated_product", steps_request(2 * steps_of_a_second)).json),
        in_background(lambda: server.grpc("ModelInfer", steps_message(2 * steps_of_a_second))),
    ]
    wait_in_flight(server, count=2)
    server.process.send_signal(number)
    while not refuses_connections(server):
        time.sleep(0.02)
    assert not any(future.done() for future in in_flight)
    assert in_flight[0].result()["outputs"][0]["data"] == [1.0]
    assert in_flight[1].result().model_name == "repeated_product"
    assert server.process.wait(240) == 0
    with pytest.raises((OSError, http.client.HTTPException)):
        idle.request("GET", "/v2/health/live")
        idle.getresponse()
    assert "Traceback" not in server.log


def refuses_connections(server: Server) -> bool:
    try:
        server.rest("GET", "/v2/health/live")
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_stop_is_bounded(
    start_server: Any, model_directories: dict[str, ModelDirectory], steps_of_a_second: int
) -> None:
    server = start_server(list(model_directories.values()))
    server.wait_ready()
    endless = in_background(lambda: server.infer("repeated_product", steps_request(1000 * steps_of_a_second)))
    wait_in_flight(server)
    assert server.stop() == 0
    answer = endless.result(60)
    assert (answer.status, answer.json) == (503, {"error": "the server stopped before the answer was computed"})


def test_parallel_requests_of_all_kinds(server: Server) -> None:
    """Many clients at once, both protocols, fast and slow models: each gets its own answer."""
    failures: list[str] = []

    def client(number: int) -> None:
        rows = [[float(number), 1.0, 2.0, 3.0]]
        expected = server.infer("perceptron", features_request(rows)).json["outputs"]
        for _ in range(20):
            if server.infer("perceptron", features_request(rows)).json["outputs"] != expected:
                failures.append(f"REST {number}")
            if server.grpc("ModelInfer", features_message(rows)).outputs[0].shape[0] != 1:
                failures.append(f"gRPC {number}")
            if server.infer("repeated_product", steps_request(100)).json["outputs"][0]["data"] != [1.0]:
                failures.append(f"slow {number}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
