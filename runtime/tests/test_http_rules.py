# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 to the letter where a client can see it (RFC 9110, RFC 9112)."""

import gzip
import json
import select

import pytest
from hostile import VALID_BODY, connect, exchange, inference, statuses
from serving import Server

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("chunked", [False, True])
def test_upgrade_is_ignored(server: Server, protocol: str, chunked: bool) -> None:
    """The request is answered, and the connection stays."""
    upgrade = (f"Upgrade: {protocol}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    if chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(VALID_BODY), VALID_BODY)
        request = inference(body, *upgrade, "Transfer-Encoding: chunked")
    else:
        request = inference(VALID_BODY, *upgrade)
    assert statuses(exchange(server.rest_port, request + request + LAST)) == [200, 200, 200]


def test_upgrade_without_a_body(server: Server) -> None:
    upgrade = GET.replace(b"Host: h\r\n", b"Host: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n")
    assert statuses(exchange(server.rest_port, upgrade + upgrade + LAST)) == [200, 200, 200]


def test_upgrade_in_http_1_0(server: Server) -> None:
    request = inference(VALID_BODY, "Upgrade: h2c", "Connection: Upgrade").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert statuses(exchange(server.rest_port, request)) == [200]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Host: a\r\nHost: a\r\n", 400),
        (b"Host: a b/c\r\n", 400),
        (b"Host: a/b\r\n", 400),
        (b"Host: a@b\r\n", 400),
        (b"Host: a,b\r\n", 400),
        (b"Host: [::1\r\n", 400),
        (b"Host: a:b\r\n", 400),
        (b"", 400),
        (b"Host:\r\n", 200),
        (b"Host: a:8000\r\n", 200),
        (b"Host: [::1]:8000\r\n", 200),
        (b"Host: press-7.site_a.example\r\n", 200),
    ],
)
def test_host(server: Server, lines: bytes, status: int) -> None:
    """RFC 9112, section 3.2."""
    request = b"GET /v2/health/live HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n"
    assert statuses(exchange(server.rest_port, request)) == [status]


@pytest.mark.parametrize(("version", "seen"), [(b"1.0", [200]), (b"1.1", [100, 200])])
def test_no_interim_answer_before_http_1_1(server: Server, version: bytes, seen: list[int]) -> None:
    """RFC 9110, section 15.2."""
    request = inference(VALID_BODY, "Expect: 100-continue", "Connection: close").replace(
        b"HTTP/1.1", b"HTTP/" + version
    )
    head, separator, body = request.partition(b"\r\n\r\n")
    with connect(server.rest_port) as connection:
        connection.sendall(head + separator)
        if version == b"1.1":
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert statuses(received) == seen[-1:]


@pytest.mark.parametrize("size", [17_000, 20_000, 100_000])
@pytest.mark.parametrize("pieces", [1, 7])
def test_long_target(server: Server, size: int, pieces: int) -> None:
    """414, however it arrives."""
    request = b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    with connect(server.rest_port) as connection:
        step = -(-len(request) // pieces)
        try:
            for start in range(0, len(request), step):
                connection.sendall(request[start : start + step])
        except OSError:  # refused already
            pass
        assert statuses(connection.recv(65536)) == [414]


def test_long_header(server: Server) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"
    assert statuses(exchange(server.rest_port, request)) == [431]


def test_absolute_target(server: Server) -> None:
    """RFC 9112, section 3.2.2."""
    request = LAST.replace(b"GET /", b"GET http://h:8000/")
    assert statuses(exchange(server.rest_port, request)) == [200]


def test_gzip_of_two_members(server: Server) -> None:
    """RFC 1952, section 2.2."""
    half = len(VALID_BODY) // 2
    body = gzip.compress(VALID_BODY[:half]) + gzip.compress(VALID_BODY[half:])
    answer = server.infer("perceptron", body, Content_Encoding="gzip")
    assert answer.status == 200, answer
    large = json.dumps({**json.loads(VALID_BODY), "id": "x" * 70_000}).encode()
    parts = [gzip.compress(large[start : start + 999]) for start in range(0, len(large), 999)]
    assert server.infer("perceptron", b"".join(parts), Content_Encoding="gzip").status == 200
    assert server.infer("perceptron", b"".join(parts)[:-3], Content_Encoding="gzip").status == 400
    assert server.infer("perceptron", gzip.compress(b"") * 2000, Content_Encoding="gzip").status == 413


def test_extensions_of_chunks_are_bounded(server: Server) -> None:
    """Not accepted for as long as they come."""
    with connect(server.rest_port) as connection:
        connection.sendall(inference(b"", "Transfer-Encoding: chunked"))
        for _ in range(2000):
            connection.sendall(b"1;" + b"x" * 8000 + b"\r\n \r\n")
            if select.select([connection], [], [], 0)[0]:
                break
        assert statuses(connection.recv(65536)) == [413]


def test_smallest_chunks(server: Server) -> None:
    body = b"".join(b"1\r\n%c\r\n" % octet for octet in VALID_BODY + b" " * 20_000) + b"0\r\n\r\n"
    request = inference(body, "Transfer-Encoding: chunked", "Connection: close")
    assert statuses(exchange(server.rest_port, request)) == [200]


@pytest.mark.parametrize(
    "path",
    ["/v2/models/perceptron/versions//ready", "/v2/models/perceptron/versions/", "/v2/models//ready"],
)
def test_empty_parts_of_a_path(server: Server, path: str) -> None:
    """They are no model's name."""
    assert server.rest("GET", path).status == 404


def test_no_words_of_python(server: Server) -> None:
    """An error says what is wrong in words of the protocol."""
    answer = server.infer("perceptron", VALID_BODY, Inference_Header_Content_Length="-1")
    assert answer.status == 400
    assert answer.json["error"] == "header Inference-Header-Content-Length is '-1', not a number of bytes"
