# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a few bytes become, and how long something unfinished may last, is bounded, whatever a client does."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import http2
import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.transports import unsent
from engines import Configured, scaled
from hostile import MIB, PATIENCE, Usage, connect, eventually, forget_peak, statuses
from onnx import TensorProto, helper
from onnx_models import save
from serving import SERVICE, Server

BODY = 4 * MIB
LIMITS = {"body_bytes": BODY, "buffered_bytes": 2 * BODY, "receive_seconds": 1, "idle_seconds": 2, "connections": 100}
CLIENTS = 40
ROWS = BODY // 16
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
CODING = http2.header("grpc-encoding", b"gzip")
RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED = b"8", b"4"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("bounds")
    running = Server.start(root, [Configured(scaled(root, 2.0, shape=("rows", 2)))], limits=LIMITS)
    running.wait_ready()
    yield running
    running.end()


def packed_rest() -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [ROWS, 2], "data": [1] * 2 * ROWS}
    body = gzip.compress(json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode())
    head = f"POST /v2/models/scaled/infer HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def packed_grpc(method: str) -> bytes:
    raw = np.ones((ROWS, 2), np.float32).tobytes()
    message = messages.ModelInferRequest(model_name="scaled", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="FP32", shape=[ROWS, 2])
    body = http2.message(gzip.compress(message.SerializeToString()), compressed=True)
    count = 1 if method == "ModelInfer" else 8
    return (
        http2.PREFACE
        + http2.frame(http2.SETTINGS, 0, 0)
        + http2.call(1, SERVICE + method, body * count, http2.END_STREAM, CODING)
    )


def peak_with(server: Server, port: int, data: bytes, wanted: bytes) -> tuple[int, list[bytes]]:
    """How much memory the server took while clients sent this at once, and the beginning of what each got."""
    forget_peak(server.process.pid)
    before = Usage.of(server.process.pid).resident
    connections = [connect(port) for _ in range(CLIENTS)]
    for connection in connections:
        connection.sendall(data)
    received = []
    for connection in connections:
        got = b""
        with suppress(ConnectionResetError):
            while wanted not in got and (part := connection.recv(65536)):
                got += part
        received.append(got)
        connection.close()
    return Usage.of(server.process.pid).peak - before, received


def test_what_small_bodies_become_is_bounded(server: Server) -> None:
    for _ in range(2):  # what was counted is counted no more afterwards
        grown, received = peak_with(server, server.rest_port, packed_rest(), b"\r\n\r\n")
        codes = [statuses(one)[0] for one in received]
        assert 200 in codes and set(codes) <= {200, 429}  # the faster the machine, the more are refused
        # Of 40 bodies, each with its tensors, 2 at once; the first time what the process keeps from then on as well.
        assert grown < CLIENTS / 2 * BODY, (grown / MIB, codes)


def test_an_answer_as_large_takes_what_the_engine_takes(tmp_path: Path) -> None:
    """Of ``1,`` as FP32: twice the body goes into the engine, as much comes out of it; nothing else may be kept."""
    count = 8 * MIB
    sides = [helper.make_tensor_value_info(side, TensorProto.FLOAT, ["n"]) for side in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", sides[:1], sides[1:])
    tensor = {"name": "x", "datatype": "FP32", "shape": [count], "data": "~"}
    values = b"[" + b"1," * (count - 1) + b"1]"
    body = json.dumps({"inputs": [tensor]}).encode().replace(b'"~"', values)
    head = f"POST /v2/models/same/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    running = Server.start(tmp_path, [save(tmp_path, "same", graph)])
    try:
        running.wait_ready()
        forget_peak(running.process.pid)
        before = Usage.of(running.process.pid).resident
        with connect(running.rest_port) as connection:
            connection.sendall(head + body)
            received = 0
            while received < 4 * count:  # "1.0,"
                part = connection.recv(MIB)
                assert part
                received += len(part)
        grown = Usage.of(running.process.pid).peak - before
        assert grown < 4.5 * len(body), grown / len(body)
    finally:
        running.end()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_what_small_messages_become_is_bounded(server: Server, method: str) -> None:
    for _ in range(2):
        # An answer is larger than the window that is never opened: each call ends at the latest with its connection.
        grown, _ = peak_with(server, server.grpc_port, packed_grpc(method), b"grpc-status")
        assert grown < 16 * BODY, grown / MIB
    channel_answer = server.grpc("ServerLive", messages.ServerLiveRequest())
    assert channel_answer.live


@pytest.mark.parametrize("method", [REFLECTION, SERVICE + "ModelStreamInfer"])
@pytest.mark.parametrize("begun", [b"\0", b"\0" + struct.pack(">L", BODY - 5) + bytes(10_000)])
def test_a_message_of_a_stream_that_began_ends_in_time(server: Server, method: str, begun: bytes) -> None:
    with connect(server.grpc_port) as connection:
        connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.call(1, method, begun, 0))
        got = b""
        while b"grpc-status" not in got:
            part = connection.recv(65536)
            assert part, got
            got += part
        assert b"grpc-status\x01" + DEADLINE_EXCEEDED in got


def test_a_connection_that_is_closed_does_not_wait_for_a_client_that_never_reads() -> None:
    async def closing() -> bool:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        lost = loop.create_future()

        class Protocol(asyncio.Protocol):
            def connection_lost(self, error: Exception | None) -> None:
                lost.set_result(True)

        transport, _ = await loop.create_connection(Protocol, sock=ours)
        while not transport.get_write_buffer_size():
            transport.write(bytes(1000))
        unsent.close(transport, 0.1)
        async with asyncio.timeout(PATIENCE):
            await lost
        theirs.close()
        return True

    assert asyncio.run(closing())


def test_a_client_that_is_slow_but_reads_gets_all() -> None:
    async def closing() -> int:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        size = 0
        while transport.get_write_buffer_size() < MIB:
            transport.write(bytes(100_000))
            size += 100_000
        unsent.close(transport, 0.5)
        received = 0
        while part := await loop.sock_recv(theirs, 65536):
            received += len(part)
            await asyncio.sleep(0.02)
        theirs.close()
        return size - received

    assert asyncio.run(closing()) == 0


def test_nothing_is_left_of_all_that(server: Server) -> None:
    eventually(lambda: Usage.of(server.process.pid).descriptors < 60, lambda: str(Usage.of(server.process.pid)))
    assert "Traceback" not in server.log, server.log
