# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the REST listener of a real process with small limits: the right error, and no harm done."""

import gzip
import json
import socket
import ssl
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from hostile import (
    MIB,
    PATIENCE,
    ROWS,
    VALID_BODY,
    connect,
    eventually,
    exchange,
    inference,
    read_to_end,
    statuses,
    unharmed,
)
from onnx_models import ModelDirectory
from serving import Server, features_request

LIMITS = {
    "body_bytes": MIB,
    "buffered_bytes": 16 * MIB,
    "header_bytes": 8192,
    "connections": 200,
    "receive_seconds": 1,
    "idle_seconds": 2,
    "tensors": 20,
    "elements": 100_000,
    "dimensions": 8,
    "string_bytes": 1000,
}
# The largest body, what becomes of it while it is parsed, and what the allocator keeps of both.
MEMORY = 48 * MIB


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


def with_tensor(**changes: Any) -> bytes:
    """A body whose only input is changed."""
    document = features_request(ROWS)
    document["inputs"][0] |= changes
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(with_tensor(shape=[4, 1]), id="shape"),
        pytest.param(with_tensor(shape=[-1, 4]), id="negative dimension"),
        pytest.param(with_tensor(shape=[2**62, 4]), id="overflowing dimension"),
        pytest.param(with_tensor(shape=[2**63, 4]), id="too large dimension"),
        pytest.param(with_tensor(shape=[10**400, 4]), id="enormous dimension"),
        pytest.param(with_tensor(shape=[1] * 5000), id="dimensions"),
        pytest.param(with_tensor(datatype="FP64"), id="datatype"),
        pytest.param(with_tensor(datatype="BF16"), id="unknown datatype"),
        pytest.param(with_tensor(data=[1.0] * 5), id="count"),
        pytest.param(with_tensor(data=[float("nan")] * 4), id="NaN"),
        pytest.param(with_tensor(data=[float("inf")] * 4), id="Infinity"),
        pytest.param(VALID_BODY.replace(b"1.0", b"1e999"), id="number beyond FP64"),
        pytest.param(with_tensor(data=[1e39] * 4), id="number beyond FP32"),
        pytest.param(with_tensor(data=[{}] * 4), id="object"),
        pytest.param(with_tensor(data=None, parameters={"binary_data_size": 2**63}), id="binary size"),
        pytest.param(with_tensor(data=None, parameters={"binary_data_size": 16}), id="no binary data"),
        pytest.param(b"[" * 500_000, id="deep lists"),
        pytest.param(b'{"inputs":' * 50_000, id="deep objects"),
        pytest.param(b"[" * 1000 + b"]" * 1000, id="deep and complete"),
        pytest.param(with_tensor(data="\0" * 1000), id="text as data"),
        pytest.param(b"\xff" * 1000, id="no UTF-8"),
        pytest.param(b'"\\ud800"', id="lone surrogate"),
        pytest.param(b"", id="nothing"),
        pytest.param(json.dumps({"inputs": features_request(ROWS)["inputs"] * 5000}).encode(), id="many inputs"),
    ],
)
def test_body_that_is_no_request(server: Server, body: bytes) -> None:
    answer = server.infer("perceptron", body)
    assert answer.status in (400, 413)
    assert set(answer.json) == {"error"}


@pytest.mark.parametrize(
    ("length", "binary"),
    [(10**17, b""), (0, VALID_BODY), (len(VALID_BODY) - 1, b""), (len(VALID_BODY) + 1, b""), (-1, b""), ("1e2", b"")],
)
def test_json_length_that_lies(server: Server, length: object, binary: bytes) -> None:
    answer = server.infer("perceptron", VALID_BODY + binary, Inference_Header_Content_Length=str(length))
    assert answer.status == 400


def test_binary_that_is_cut_off(server: Server) -> None:
    document = features_request(ROWS)
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": 16}
    head = json.dumps(document).encode()
    for count in (0, 1, 15, 17, 1000):
        answer = server.infer("perceptron", head + bytes(count), Inference_Header_Content_Length=str(len(head)))
        assert answer.status == 400
    assert server.infer("perceptron", head + bytes(16), Inference_Header_Content_Length=str(len(head))).status == 200


def test_body_over_the_limit(server: Server) -> None:
    headers = ("Content-Length: 1048577", "Expect: 100-continue")
    assert statuses(exchange(server.rest_port, inference(b"", *headers)))[-1] == 413
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    received = exchange(server.rest_port, inference(chunk * 100, "Transfer-Encoding: chunked"))
    assert statuses(received) == [413]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_bomb(server: Server, coding: str) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress
    assert server.infer("perceptron", compress(VALID_BODY), Content_Encoding=coding).status == 200
    bomb = compress(VALID_BODY + b" " * (100 * MIB))
    assert len(bomb) < MIB
    assert server.infer("perceptron", bomb, Content_Encoding=coding).status == 413
    for damaged in (bomb[:-10], compress(VALID_BODY)[:-1], b"\x1f\x8b" + b"\xff" * 100, b"", VALID_BODY):
        assert server.infer("perceptron", damaged, Content_Encoding=coding).status in (400, 413)


def test_compressed_twice(server: Server) -> None:
    body = gzip.compress(gzip.compress(VALID_BODY))
    for coding in ("gzip", "gzip, gzip", "br", "x" * 100):
        assert server.infer("perceptron", body, Content_Encoding=coding).status in (400, 415)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /v2 HTTP/1.1\r\n" + b"".join(b"h%d: 1\r\n" % n for n in range(5000)) + b"\r\n", id="many"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nlong: " + b"1" * 100_000 + b"\r\n\r\n", id="long"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nendless: " + b"1" * 1_000_000, id="endless"),
        pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", id="path"),
    ],
)
def test_headers_over_the_limit(server: Server, head: bytes) -> None:
    received = exchange(server.rest_port, head)
    assert statuses(received) in ([431], [414])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), id="HTTP/2 preface"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS hello"),
        pytest.param(bytes(range(256)) * 100, id="garbage"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", id="no colon"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two lengths"),
        pytest.param(b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="chunk size"),
        pytest.param(
            b"POST /v2 HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="smuggling"
        ),
    ],
)
def test_what_is_no_http(server: Server, data: bytes) -> None:
    received = exchange(server.rest_port, data)
    assert statuses(received)[:1] in ([400], [404], [405], [505], [])


def test_content_length_too_short(server: Server) -> None:
    received = exchange(server.rest_port, inference(VALID_BODY, f"Content-Length: {len(VALID_BODY) - 10}"))
    # The rest of the body is where the next request should begin.
    assert statuses(received) == [400, 400]


def test_content_length_too_long(server: Server) -> None:
    with connect(server.rest_port) as connection:
        connection.sendall(inference(VALID_BODY, f"Content-Length: {len(VALID_BODY) + 10}"))
        assert statuses(read_to_end(connection)) in ([408], [])


def test_slow_headers_and_bodies(server: Server) -> None:
    beginnings = (b"GET /v2", b"GET /v2 HTTP/1.1\r\nHost: a", inference(b'{"inp', "Content-Length: 500"))
    with ExitStack() as opened:
        slow = [opened.enter_context(connect(server.rest_port)) for _ in range(40)]
        for index, connection in enumerate(slow):
            connection.sendall(beginnings[index % len(beginnings)])
            connection.setblocking(False)
        # One byte at a time would go on for ever if every byte gave the client more time.
        eventually(lambda: not [one for one in slow if _goes_on(one)], lambda: "slow clients are still connected")


def _goes_on(connection: socket.socket) -> bool:
    """Send one more byte, unless the server has closed the connection."""
    try:
        while part := connection.recv(65536):
            assert b"HTTP/1.1 408" in part
    except BlockingIOError:
        with suppress(OSError):
            connection.sendall(b"a")
            return True
    except OSError:
        pass
    return False


def test_half_closed(server: Server) -> None:
    whole = inference(VALID_BODY)
    for length in range(0, len(whole), 7):
        assert statuses(exchange(server.rest_port, whole[:length], half_close=True)) in ([], [400], [408])
    assert statuses(exchange(server.rest_port, whole, half_close=True)) == [200]


def test_client_that_never_reads(server: Server) -> None:
    wanted = b"GET /v2/models/every_type HTTP/1.1\r\nHost: localhost\r\n\r\n"
    clients = []
    for _ in range(10):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.rest_port))
        client.setblocking(False)
        try:
            for _ in range(3000):
                client.send(wanted * 10)
        except BlockingIOError:
            pass
        clients.append(client)
    assert server.infer("perceptron", VALID_BODY).status == 200
    for client in clients:
        client.close()


def test_many_large_bodies(server: Server) -> None:
    head = inference(b"", f"Content-Length: {MIB}")
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(server.rest_port)) for _ in range(100)]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(head + bytes(MIB - 1))
        answers = [statuses(_received(connection)) for connection in connections]
        # The first ones are waited for until their time is over; then there is room again.
        assert {tuple(answer) for answer in answers} <= {(429,), (408,), ()}
        assert [429] in answers
    assert server.infer("perceptron", VALID_BODY + b" " * 500_000).status == 200


def test_body_in_tiny_chunks(start_server: Any) -> None:
    running = start_server()
    running.wait_ready()
    with unharmed(running, MEMORY), connect(running.rest_port) as connection:
        connection.sendall(inference(b"", "Transfer-Encoding: chunked"))
        for _ in range(250):
            connection.sendall(b"2\r\n  \r\n" * 10_000)


def test_pipelined_flood(server: Server) -> None:
    flood = b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n" * 9000
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(server.rest_port)) for _ in range(LIMITS["connections"] - 20)]
        for connection in connections:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.send(flood)
        for connection in connections:
            connection.settimeout(PATIENCE)
            assert statuses(connection.recv(200)) == [200]


def test_aborted_in_the_middle(server: Server) -> None:
    whole = inference(VALID_BODY)
    for length in range(1, len(whole), 3):
        with connect(server.rest_port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
            connection.sendall(whole[:length])


def test_more_connections_than_allowed(server: Server) -> None:
    asked = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as opened:
        first = [opened.enter_context(connect(server.rest_port)) for _ in range(LIMITS["connections"] - 20)]
        for connection in first:
            connection.sendall(asked)
            assert statuses(connection.recv(65536)) == [200]
        flood = []
        for _ in range(1500):
            with suppress(OSError):
                flood.append(opened.enter_context(connect(server.rest_port)))
                flood[-1].sendall(asked)
        # Who is in goes on, as do unix sockets; who came too late is told so, or cut off.
        assert server.unix("GET", "/v2/health/live").status == 200
        for connection in first:
            connection.sendall(asked)
            assert statuses(connection.recv(65536)) == [200]
        answers = [statuses(_received(connection)) for connection in flood]
        assert answers.count([200]) <= 20
        assert [503] in answers
        assert {tuple(answer) for answer in answers} <= {(200,), (503,), ()}


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def test_what_is_no_tls(start_server: Any, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    running = start_server(tls={"certificate": str(certificate), "key": str(key)}, limits=LIMITS)
    running.wait_ready()
    hello = ssl.create_default_context()
    hello.check_hostname = False
    hello.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        hello.wrap_bio(incoming, outgoing).do_handshake()
    first = outgoing.read()
    with unharmed(running, MEMORY):
        for port in (running.rest_port, running.grpc_port):
            for data in (
                inference(VALID_BODY),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                bytes(range(256)) * 100,
                first[:50],
                first + bytes(1000),
                first.replace(b"\x03\x03", b"\x03\x00"),
                b"",
            ):
                assert b"HTTP/1.1 200" not in exchange(port, data, half_close=True)
            # A handshake that never goes on must end by itself.
            idle = [connect(port) for _ in range(20)]
            for connection in idle:
                connection.sendall(first[:100])
            for connection in idle:
                read_to_end(connection)
                connection.close()
