# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Far more work than the queue of a model takes: refused at once, with flat memory, while the server stays live."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from hostile import MIB, Usage, connect, eventually, inference, statuses
from onnx_models import repeated_product
from serving import SERVICE, Server, steps_message, steps_request

QUEUE = 3
CLIENTS = 300
ENDLESS = 10**12  # steps: until it is cancelled
MEMORY = 48 * MIB
HEALTH = ("/v2/health/live", "/v2/health/ready")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one model, with one engine thread and a short queue."""
    model = repeated_product(tmp_path_factory.mktemp("model"), warm_up_steps=200)
    (model.path / "serving.json").write_text(json.dumps({"queue": QUEUE, "engine": {"parallel": 1}}))
    running = Server.start(tmp_path_factory.mktemp("server"), [model])
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


@pytest.fixture
def busy(server: Server) -> Iterator[list[socket.socket]]:
    """Connections whose requests keep the engine thread and the queue busy for as long as they are open."""
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(server.rest_port)) for _ in range(QUEUE + 1)]
        for connection in connections:
            connection.sendall(request(ENDLESS))
        eventually(lambda: under_way(server) == QUEUE + 1, lambda: f"{under_way(server)} requests are under way")
        yield connections
    # Clients that leave make room again.
    eventually(lambda: under_way(server) == 0, lambda: f"{under_way(server)} requests are still under way")
    assert server.infer("repeated_product", steps_request(1)).status == 200


def request(steps: int, padding: int = 0) -> bytes:
    """An inference as it goes over the wire."""
    return inference(json.dumps(steps_request(steps)).encode() + b" " * padding, model="repeated_product")


def under_way(server: Server) -> float:
    """Requests that wait or are computed, as the metrics tell."""
    metrics = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    name = 'edgeml_inference_under_way{model="repeated_product"} '
    return sum(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))


def assert_unanswered(connections: list[socket.socket]) -> None:
    """Nothing has come yet, and none is closed."""
    for connection in connections:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


def test_rest(server: Server, busy: list[socket.socket]) -> None:
    before = Usage.of(server.process.pid)
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(server.rest_port)) for _ in range(CLIENTS)]
        for round_ in range(5):
            for client in clients:
                client.sendall(request(1, padding=20_000))
            for path in HEALTH:
                assert server.rest("GET", path).status == 200
            for client in clients:
                received = client.recv(65536)
                assert statuses(received) == [429]
                assert b"\r\nretry-after: 1\r\n" in received
                assert b"takes no more; try again later" in received
            during = Usage.of(server.process.pid)
            assert during.resident <= before.resident + MEMORY, f"{before} before, {during} in round {round_}"
    assert_unanswered(busy)


def test_grpc(server: Server, busy: list[socket.socket]) -> None:
    before = Usage.of(server.process.pid)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(
            SERVICE + "ModelInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelInferResponse.FromString,
        )
        message = steps_message(1)
        message.parameters["padding"].string_param = "a" * 20_000
        for round_ in range(5):
            calls = [infer.future(message, timeout=60) for _ in range(CLIENTS)]
            assert server.grpc("ServerLive", messages.ServerLiveRequest()).live
            assert server.grpc("ServerReady", messages.ServerReadyRequest()).ready
            for call in calls:
                assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "takes no more; try again later" in call.details()
            during = Usage.of(server.process.pid)
            assert during.resident <= before.resident + MEMORY, f"{before} before, {during} in round {round_}"
    assert_unanswered(busy)


def test_clients_that_never_pause(server: Server) -> None:
    answers: list[tuple[int, Any]] = []

    def client(_index: int) -> None:
        for _ in range(10):
            answer = server.infer("repeated_product", steps_request(300))
            answers.append((answer.status, answer.json))

    with ThreadPoolExecutor(40) as pool:
        running = list(pool.map(client, range(40)))
        assert len(running) == 40
    assert len(answers) == 400
    assert {status for status, _ in answers} == {200, 429}
    for status, document in answers:
        assert document["outputs"][0]["data"] == [1.0] if status == 200 else set(document) == {"error"}
