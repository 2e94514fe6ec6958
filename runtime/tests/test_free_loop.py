# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The event loop goes on whatever a client sends: very many tensors, long lists of numbers, and what is of their kind.

The measure is what a parser takes for the body at once, here and now: the loop may stand still for a part of it.
"""

import asyncio
import gc
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from time import perf_counter, process_time, sleep

import http2
import orjson
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.transports.grpc.calls import Calls
from engines import scaled
from in_process import InProcess, resident_bytes, serving

MIB = 1 << 20
PATH = "/v2/models/scaled/infer"
CALL = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with serving(scaled(tmp_path_factory.mktemp("models"), 2.0, shape=("rows", "columns"))) as running:
        yield running


class Pulse:
    """The longest time that the event loop stood still, less what the machine gave to other processes meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.longest = 0.0
        self._loop = loop
        self._last = (perf_counter(), process_time())
        self._goes = True

    def beat(self) -> None:
        """Once a millisecond."""
        now = (perf_counter(), process_time())
        self.longest = max(self.longest, min(now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now
        if self._goes:
            self._loop.call_later(0.001, self.beat)

    def end(self) -> None:
        """The last time."""
        self._goes = False


def standstill(server: InProcess, port: int, data: bytes, ends: bytes) -> tuple[float, bytes]:
    """How long the loop stood still while it was sent that, and the answer up to ``ends``."""
    pulse = Pulse(server.loop)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        server.loop.call_soon_threadsafe(pulse.beat)
        connection.sendall(data)
        received = bytearray()
        while ends not in received and (part := connection.recv(MIB)):
            received += part
        server.loop.call_soon_threadsafe(pulse.end)
    return pulse.longest, bytes(received)


def tensor(data: bytes, shape: list[int], datatype: str = "FP32") -> bytes:
    head = json.dumps({"name": "x", "datatype": datatype, "shape": shape, "data": 0}).encode()
    return b'{"inputs":[' + head.replace(b'"data": 0', b'"data": [' + data + b"]") + b"]}"


COUNT = 4 * MIB
BODIES = {
    "objects": (b'{"inputs":[' + b"{}," * COUNT + b"{}]}", 413),
    "other objects": (b'{"x":[' + b"{}," * COUNT + b"{}]}", 413),
    "numbers": (tensor(b"1," * (COUNT - 1) + b"1", [1, COUNT]), 200),
    "lists": (tensor(b"[1]," * (COUNT // 2 - 1) + b"[1]", [COUNT // 2, 1]), 200),
    "strings": (tensor(b'"a",' * (COUNT // 2 - 1) + b'"a"', [1, COUNT // 2], "FP32"), 400),
    "escapes": (tensor(b'"\\n",' * (COUNT // 4 - 1) + b'"a"', [1, COUNT // 4], "FP32"), 400),
    "white": (tensor(b"1" + b" " * COUNT + b",1", [1, 2]), 200),
}


@pytest.mark.parametrize("name", BODIES)
def test_rest(server: InProcess, name: str) -> None:
    body, status = BODIES[name]
    started = process_time()
    orjson.loads(body)
    at_once = process_time() - started
    head = f"POST {PATH} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    # The answer of millions of numbers is not what is measured here: the connection ends with its head.
    longest, received = standstill(server, server.rest_port, head + body, b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:500]
    assert longest < max(0.25, at_once / 3), (longest, at_once)


def bomb() -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    return stream.compress(bytes(60 * MIB)) + stream.flush()


def numbers() -> bytes:
    message = messages.ModelInferRequest(model_name="scaled")
    message.inputs.add(name="x", datatype="INT64", shape=[1, COUNT]).contents.int64_contents.extend([1] * COUNT)
    return message.SerializeToString()


MESSAGES = {
    "inputs": (http2.message(b"\x0a\x01m" + b"\x2a\x00" * COUNT), b""),
    "unknown fields": (http2.message(b"\x0a\x01m" + b"\x58\x00" * COUNT), b""),
    "numbers": (http2.message(numbers()), b""),
    "bomb": (http2.message(bomb(), compressed=True), http2.header("grpc-encoding", b"gzip")),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_grpc(server: InProcess, name: str) -> None:
    body, header = MESSAGES[name]
    started = process_time()
    kept = [object() for _ in range(COUNT // 4)]  # as a parser makes them
    at_once = process_time() - started
    del kept
    frames = [http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0), http2.call(1, CALL, b"", 0, header)]
    for start in range(0, len(body), 16384):
        flags = http2.END_STREAM if start + 16384 >= len(body) else 0
        frames.append(http2.frame(http2.DATA, flags, 1, body[start : start + 16384]))
    before = resident_bytes()
    longest, received = standstill(server, server.grpc_port, b"".join(frames), b"grpc-status")
    assert b"grpc-status" in received
    assert longest < max(0.25, at_once), (longest, at_once)
    assert resident_bytes() < before + 300 * MIB


class Steps:
    """The most that a count grew by in one turn of the event loop, on a machine that has much else to do between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: Callable[[], int]) -> None:
        self.longest = self.total = 0
        self._loop = loop
        self._count = count
        self._last = count()
        self._goes = True

    def beat(self) -> None:
        """Once a turn; meanwhile clients fill the buffers of the system."""
        now = self._count()
        self.longest = max(self.longest, now - self._last)
        self.total += max(0, now - self._last)
        self._last = now
        sleep(0.01)
        if self._goes:
            self._loop.call_soon(self.beat)

    async def end(self) -> None:
        """The last time."""
        self._goes = False
        self.beat()


def steps(server: InProcess, count: Callable[[], int], data: bytes, answers: int) -> Steps:
    """How a count grew while the gRPC server was sent that."""
    found = Steps(server.loop, count)
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=240) as connection:
        server.loop.call_soon_threadsafe(found.beat)
        connection.sendall(data)
        received = bytearray()
        while received.count(b"grpc-status") < answers:
            part = connection.recv(MIB)
            assert part, bytes(received[-500:])
            received += part
        server.run(found.end())
    return found


def test_a_large_message_is_taken_in_portions(server: InProcess) -> None:
    # Servers of other tests may not have been collected yet.
    all_calls = (each for each in gc.get_objects() if isinstance(each, Calls))
    (calls,) = (each for each in all_calls if each.draining.get_loop() is server.loop)
    frames = [http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0), http2.call(1, CALL, b"", 0)]
    size = 16 * MIB
    body = http2.message(bytes(size))
    for start in range(0, len(body), 16384):
        flags = http2.END_STREAM if start + 16384 >= len(body) else 0
        frames.append(http2.frame(http2.DATA, flags, 1, body[start : start + 16384]))
    found = steps(server, lambda: calls.buffered, b"".join(frames), 1)
    assert found.total >= size
    assert found.longest <= 2 * MIB


def test_many_calls_are_taken_in_portions(server: InProcess) -> None:
    answered = 0
    count_request = server.metrics.count_request

    def counting(*labels: str) -> None:
        nonlocal answered
        answered += 1
        count_request(*labels)

    message = messages.ModelInferRequest(model_name="scaled", raw_input_contents=[bytes(8)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    body = http2.message(message.SerializeToString())
    sent = b"".join(http2.call(2 * index + 1, CALL, body) for index in range(900))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.metrics, "count_request", counting)
        found = steps(server, lambda: answered, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + sent, 900)
    assert found.total == 900
    assert found.longest <= 64
