# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the gRPC listener of a real process with small limits: the right error, and no harm done."""

import gzip
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]
import http2
import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from hostile import MIB, ROWS, connect, exchange, unharmed
from onnx_models import ModelDirectory
from serving import SERVICE, Server, features_message

LIMITS = {
    "body_bytes": MIB,
    "header_bytes": 8192,
    "connections": 200,
    "receive_seconds": 1,
    "idle_seconds": 2,
    "tensors": 20,
    "elements": 100_000,
    "dimensions": 8,
    "string_bytes": 1000,
}
MEMORY = 48 * MIB
INFER = SERVICE + "ModelInfer"


@pytest.fixture(scope="module")
def server(model_directories: dict[str, ModelDirectory], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits, shared by the attacks of this module."""
    running = Server.start(tmp_path_factory.mktemp("hostile"), list(model_directories.values()), limits=LIMITS)
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


@pytest.fixture(autouse=True)
def no_harm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every attack leaves the shared server as it was."""
    if "server" not in request.fixturenames:
        yield
        return
    with unharmed(request.getfixturevalue("server"), MEMORY):
        yield


def changed(**changes: Any) -> messages.ModelInferRequest:
    """An inference whose only input is changed."""
    message = messages.ModelInferRequest(model_name="perceptron")
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 4]} | changes
    raw = tensor.pop("raw", [np.ones(4, "<f4").tobytes()])
    message.inputs.add(**tensor)
    message.raw_input_contents.extend(raw)
    return message


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\xff" * 1000, id="garbage"),
        pytest.param(features_message(ROWS).SerializeToString()[:-3], id="cut off"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f" + b"a" * 10, id="length beyond the message"),
        pytest.param(b"\x13" * 100_000, id="deep groups"),
        pytest.param(b"\x0a\x02\xff\xfe", id="name that is no UTF-8"),
        pytest.param(changed(shape=[4, 1]), id="shape"),
        pytest.param(changed(shape=[-1, 4]), id="negative dimension"),
        pytest.param(changed(shape=[1] * 5000), id="dimensions"),
        pytest.param(changed(datatype="FP64"), id="datatype"),
        pytest.param(changed(datatype="BF16"), id="unknown datatype"),
        pytest.param(changed(raw=[bytes(15)]), id="raw too short"),
        pytest.param(changed(raw=[bytes(17)]), id="raw too long"),
        pytest.param(changed(raw=[b""] * 5000), id="many raw contents"),
        pytest.param(changed(raw=[]), id="no contents"),
    ],
)
def test_message_that_is_no_request(server: Server, message: Any) -> None:
    assert server.grpc_error("ModelInfer", message)[0] == "INVALID_ARGUMENT"


def test_not_a_number_is_a_number(server: Server) -> None:
    response = server.grpc("ModelInfer", changed(raw=[np.full(4, np.nan, "<f4").tobytes()]))
    assert np.isnan(np.frombuffer(response.raw_output_contents[0], "<f4")).all()


def test_message_over_the_limit(server: Server) -> None:
    assert server.grpc_error("ModelInfer", bytes(2 * MIB))[0] == "RESOURCE_EXHAUSTED"
    # A prefix that promises more than the limit, and nothing after it.
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    for length in (2 * MIB, 2**31, 2**32 - 1):
        prefix = b"\0" + length.to_bytes(4, "big")
        with connect(server.grpc_port) as connection:
            connection.sendall(start + http2.call(1, INFER, prefix, 0))
            assert b"larger than" in _until(connection, b"larger than")


@pytest.mark.parametrize(("coding", "window"), [(b"gzip", 31), (b"deflate", 15)])
def test_compressed_bomb(server: Server, coding: bytes, window: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    bomb = packer.compress(bytes(50 * MIB)) + packer.flush()
    body = http2.message(bomb, compressed=True)
    sent = [http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0)]
    sent.append(http2.call(1, INFER, body[:10_000], 0, http2.header("grpc-encoding", coding)))
    for start in range(10_000, len(body), 10_000):
        flags = http2.END_STREAM if start + 10_000 >= len(body) else 0
        sent.append(http2.frame(http2.DATA, flags, 1, body[start : start + 10_000]))
    with connect(server.grpc_port) as connection:
        connection.sendall(b"".join(sent))
        received = b""
        while b"grpc-status" not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
    assert b"grpc-status\x018" in received  # RESOURCE_EXHAUSTED


def test_compressed_request(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(INFER, bytes, messages.ModelInferResponse.FromString)
        valid = features_message(ROWS).SerializeToString()
        assert call(valid, compression=grpc.Compression.Gzip, timeout=60).model_name == "perceptron"


def test_compression_that_lies(server: Server) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    valid = features_message(ROWS).SerializeToString()
    for coding, body in (
        (b"gzip", b"\x1f\x8b" + b"\xff" * 100),
        (b"gzip", gzip.compress(valid)[:-5]),
        (b"deflate", gzip.compress(valid)),
        (b"snappy", valid),
        (b"identity", valid),
    ):
        with connect(server.grpc_port) as connection:
            extra = http2.header("grpc-encoding", coding)
            connection.sendall(
                start + http2.call(1, INFER, http2.message(body, compressed=True), http2.END_STREAM, extra)
            )
            received = _until(connection, b"grpc-status")
            assert b"perceptron" not in received


def test_metadata_over_the_limit(server: Server) -> None:
    for metadata in ((("long", "a" * 100_000),), tuple((f"h{index}", "1" * 50) for index in range(5000))):
        code, _ = server.grpc_error("ModelInfer", features_message(ROWS), metadata=metadata)
        assert code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


def test_long_stream_is_no_attack(server: Server) -> None:
    count = 2500
    turn = threading.Semaphore()

    def requests() -> Iterator[messages.ModelInferRequest]:
        for _ in range(count):
            turn.acquire()
            yield features_message(ROWS)

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelStreamInferResponse.FromString,
        )
        answered = 0
        for response in call(requests(), timeout=120):  # one after the other: each answer is acknowledged
            assert response.infer_response.model_name == "perceptron"
            answered += 1
            turn.release()
        assert answered == count
        assert sum(1 for _ in call(iter([features_message(ROWS)] * count), timeout=120)) == count
        # A compressed message may only give back what it took of the client's window, which would overflow.
        padded = features_message(ROWS)
        padded.parameters["padding"].string_param = "a" * 900_000
        answers = call(iter([padded] * 200), compression=grpc.Compression.Gzip, timeout=120)
        assert sum(1 for _ in answers) == 200


def test_client_that_never_reads(start_server: Any) -> None:
    running = start_server()  # with the default limits: for half a minute, only flow control bounds the answers
    running.wait_ready()
    wrong = messages.ModelInferRequest(model_name="\u00e9" * 480).SerializeToString()  # six bytes each in the answer
    with unharmed(running, MEMORY), connect(running.grpc_port) as connection:
        connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        connection.settimeout(2)  # a server that no longer reads has defended itself
        with suppress(OSError):
            for first in range(1, 100_000, 200):
                calls = (http2.call(stream, INFER, http2.message(wrong)) for stream in range(first, first + 200, 2))
                connection.sendall(b"".join(calls))


def test_message_in_tiny_frames(start_server: Any) -> None:
    running = start_server(limits={"receive_seconds": 3600})
    running.wait_ready()
    with unharmed(running, MEMORY), connect(running.grpc_port) as connection:
        connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        connection.sendall(http2.call(1, INFER, b"\0" + (50 * MIB).to_bytes(4, "big"), 0))
        for _ in range(120):
            connection.sendall(http2.frame(http2.DATA, 0, 1, b"ab") * 10_000)


def test_settings_of_many_windows(server: Server) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    pending = b"".join(http2.call(stream, INFER, b"", 0) for stream in range(1, 300, 2))
    settings = http2.frame(http2.SETTINGS, 0, 0, b"".join(struct.pack(">HI", 4, n % 2) for n in range(2700)))
    with connect(server.grpc_port) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(start + pending)
        for _ in range(100):
            connection.sendall(settings)


def test_endless_continuation(server: Server) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    more = http2.frame(http2.CONTINUATION, 0, 1, b"".join(http2.header(f"h{n}", b"a" * 100) for n in range(100)))
    with connect(server.grpc_port) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(start + http2.frame(http2.HEADERS, 0, 1, http2.header(":method", b"POST")))
        for _ in range(2000):
            connection.sendall(more)


def test_rapid_reset(server: Server) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    body = http2.message(features_message(ROWS).SerializeToString())
    with connect(server.grpc_port) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(start)
        for stream in range(1, 20_001, 2):
            reset = http2.frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
            connection.sendall(http2.call(stream, INFER, body) + reset)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(http2.frame(http2.PING, 0, 0, bytes(8)), id="pings"),
        pytest.param(http2.frame(http2.SETTINGS, 0, 0, b"\0\4\0\0\xff\xff"), id="settings"),
        pytest.param(http2.frame(http2.DATA, 0, 0), id="data on no stream"),
        pytest.param(http2.frame(http2.DATA, 0, 1), id="empty data"),
        pytest.param(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff" * 50), id="no HPACK"),
        pytest.param(http2.frame(0xEE, 0xFF, 7, bytes(100)), id="unknown frames"),
        pytest.param(b"\xff\xff\xff" + bytes(6), id="frame too large"),
    ],
)
def test_flood(server: Server, attack: bytes) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    for _ in range(5):
        with connect(server.grpc_port) as connection, suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
            connection.settimeout(2)  # a server that no longer reads has defended itself
            connection.sendall(start)
            for _ in range(100):
                connection.sendall(attack * 100)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP/1.1"),
        pytest.param(bytes(range(256)) * 100, id="garbage"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS hello"),
        pytest.param(http2.PREFACE, id="preface alone"),
        pytest.param(http2.PREFACE[:10], id="half a preface"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_http2(server: Server, data: bytes) -> None:
    exchange(server.grpc_port, data, half_close=True)


def test_connections_that_say_nothing(server: Server) -> None:
    connections = []
    with suppress(ConnectionResetError, BrokenPipeError):
        for index in range(1000):
            connections.append(connect(server.grpc_port))
            connections[-1].sendall((b"", http2.PREFACE, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))[index % 3])
    assert server.unix("GET", "/v2/health/live").status == 200
    for connection in connections:
        connection.close()


def test_aborted_in_the_middle(server: Server) -> None:
    body = http2.message(features_message(ROWS).SerializeToString())
    whole = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.call(1, INFER, body)
    for length in range(1, len(whole), 3):
        with connect(server.grpc_port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
            connection.sendall(whole[:length])


@pytest.mark.parametrize("method", ["/", SERVICE + "Other", "/other/ModelInfer", "/" + "a" * 5000])
def test_unknown_method(server: Server, method: str) -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    with connect(server.grpc_port) as connection:
        connection.sendall(start + http2.call(1, method, http2.message(b"")))
        assert b"grpc-status" in _until(connection, b"grpc-status")


def _until(connection: socket.socket, wanted: bytes) -> bytes:
    """What the server sends, until ``wanted`` has come or it closes the connection."""
    received = b""
    while wanted not in received and (part := connection.recv(65536)):
        received += part
    return received
