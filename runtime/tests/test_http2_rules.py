# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 and gRPC to the letter where a client can see it (RFC 9113); cases as h2spec has them. FIELD 19 and 20."""

import struct
from typing import Any

import http2
import pytest
from hostile import ROWS, connect
from http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header,
    message,
)
from serving import Server, features_message

CALL = "/inference.GRPCInferenceService/ModelInfer"
BODY = message(features_message(ROWS).SerializeToString())
START = http2.PREFACE + frame(SETTINGS, 0, 0)
PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = 1, 3, 5, 6, 9

PSEUDO = (
    header(":method", b"POST"),
    header(":scheme", b"http"),
    header(":path", CALL.encode()),
    header(":authority", b"h"),
)
REGULAR = (header("content-type", b"application/grpc"), header("te", b"trailers"))


def request(*fields: bytes, number: int = 1, body: bytes = BODY) -> bytes:
    return frame(HEADERS, END_HEADERS, number, b"".join(fields)) + frame(DATA, END_STREAM, number, body)


GOOD = request(*PSEUDO, *REGULAR)
FOLLOWING = request(*PSEUDO, *REGULAR, number=3)


def outcome(server: Server, data: bytes) -> tuple[str, int]:
    """How the connection or stream 1 ends: what, and its code."""
    with connect(server.grpc_port) as connection:
        connection.sendall(data)
        received = connection.makefile("rb")
        while True:
            kind, flags, number, payload = http2.read_frame(received)
            if kind == GOAWAY:
                return "connection", struct.unpack(">LL", payload[:8])[1]
            if number == 1 and kind == RST_STREAM:
                return "stream", struct.unpack(">L", payload)[0]
            if number == 1 and kind == HEADERS and flags & END_STREAM:
                status = payload.split(b"grpc-status")[1]
                return "status", int(status[1 : 1 + status[0]])


def test_good(server: Server) -> None:
    assert outcome(server, START + GOOD) == ("status", 0)


@pytest.mark.parametrize(
    "fields",
    [
        (*PSEUDO, *REGULAR, header("Upper", b"x")),
        (*PSEUDO, *REGULAR, header("connection", b"keep-alive")),
        (*PSEUDO, *REGULAR, header("transfer-encoding", b"chunked")),
        (*PSEUDO, *REGULAR, header("upgrade", b"h2c")),
        (*PSEUDO, *REGULAR, header("keep-alive", b"1")),
        (*PSEUDO, *REGULAR, header("proxy-connection", b"x")),
        (*PSEUDO, header("content-type", b"application/grpc"), header("te", b"gzip")),
        (*PSEUDO, header(":path", b"/"), *REGULAR),
        (*PSEUDO, header(":unknown", b"/"), *REGULAR),
        (*PSEUDO, header(":status", b"200"), *REGULAR),
        (*PSEUDO[:2], *REGULAR, *PSEUDO[2:]),
        (*PSEUDO, *REGULAR, header("a", b"b\r\nc: d")),
        (*PSEUDO, *REGULAR, header("a", b"b\0")),
        (*PSEUDO, *REGULAR, header("a", b" b")),
        (*PSEUDO, *REGULAR, header("a b", b"c")),
        (*PSEUDO, *REGULAR, header("", b"c")),
        (*PSEUDO[1:], *REGULAR),
        (PSEUDO[0], *PSEUDO[2:], *REGULAR),
        (*PSEUDO[:2], PSEUDO[3], *REGULAR),
        (*PSEUDO[:2], header(":path", b""), *REGULAR),
        (*PSEUDO, *REGULAR, header("content-length", b"x")),
        (*PSEUDO, *REGULAR, header("content-length", b"1")),
        (*PSEUDO, *REGULAR, header("content-length", b"%d" % (len(BODY) + 1))),
    ],
    ids=str,
)
def test_malformed_requests(server: Server, fields: tuple[bytes, ...]) -> None:
    """Sections 8.1.1, 8.2 and 8.3: the stream alone ends."""
    assert outcome(server, START + request(*fields)) == ("stream", PROTOCOL)
    with connect(server.grpc_port) as connection:
        connection.sendall(START + request(*fields) + FOLLOWING)
        received = connection.makefile("rb")
        while True:
            kind, flags, number, _payload = http2.read_frame(received)
            assert kind != GOAWAY
            if number == 3 and kind == HEADERS and flags & END_STREAM:
                break


def test_right_content_length(server: Server) -> None:
    fields = (*PSEUDO, *REGULAR, header("content-length", b"%d" % len(BODY)))
    assert outcome(server, START + request(*fields)) == ("status", 0)


def settings(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HL", key, value))


HEAD = frame(HEADERS, END_HEADERS, 1, b"".join((*PSEUDO, *REGULAR)))
WINDOW = struct.pack(">L", (1 << 31) - 1)
NONE = struct.pack(">L", 0)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (http2.PREFACE + GOOD, PROTOCOL),
        (http2.PREFACE + frame(PING, 0, 0, bytes(8)), PROTOCOL),
        (http2.PREFACE + frame(SETTINGS, 1, 0), PROTOCOL),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx", PROTOCOL),
        (START + settings(2, 2), PROTOCOL),
        (START + settings(4, 1 << 31), FLOW),
        (START + settings(5, 16_383), PROTOCOL),
        (START + settings(5, 1 << 24), PROTOCOL),
        (START + frame(SETTINGS, 0, 0, b"12345"), SIZE),
        (START + frame(SETTINGS, 1, 0, bytes(6)), SIZE),
        (START + frame(SETTINGS, 0, 1), PROTOCOL),
        (START + request(*PSEUDO, *REGULAR, number=5) + request(*PSEUDO, *REGULAR, number=3), PROTOCOL),
        (START + request(*PSEUDO, *REGULAR, number=2), PROTOCOL),
        (START + request(*PSEUDO, *REGULAR, number=0), PROTOCOL),
        (START + frame(DATA, 0, 0, b"x"), PROTOCOL),
        (START + frame(DATA, 0, 1, b"x"), PROTOCOL),
        (START + frame(RST_STREAM, 0, 1, NONE), PROTOCOL),
        (START + frame(RST_STREAM, 0, 0, NONE), PROTOCOL),
        (START + frame(WINDOW_UPDATE, 0, 1, WINDOW), PROTOCOL),
        (START + frame(WINDOW_UPDATE, 0, 0, NONE), PROTOCOL),
        (START + frame(WINDOW_UPDATE, 0, 0, b"123"), SIZE),
        (START + frame(WINDOW_UPDATE, 0, 0, WINDOW), FLOW),
        (START + HEAD + frame(WINDOW_UPDATE, 0, 1, WINDOW), FLOW),
        (START + HEAD + frame(WINDOW_UPDATE, 0, 1, WINDOW[:3] + b"\1"), FLOW),
        (START + HEAD + frame(RST_STREAM, 0, 1, b"123"), SIZE),
        (START + frame(PING, 0, 0, b"1234567"), SIZE),
        (START + frame(PING, 0, 1, bytes(8)), PROTOCOL),
        (START + frame(2, 0, 0, bytes(5)), PROTOCOL),
        (START + frame(2, 0, 1, bytes(4)), SIZE),
        (START + frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
        (START + frame(5, 0, 1, bytes(8)), PROTOCOL),
        (START + frame(CONTINUATION, 0, 1, b""), PROTOCOL),
        (START + frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)), PROTOCOL),
        (START + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 4, 3, b""), PROTOCOL),
        (START + frame(HEADERS, 0, 1, b"") + frame(99, 0, 1, b""), PROTOCOL),
        (START + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION),
        (START + frame(HEADERS, END_HEADERS | 8, 1, b"\x09"), PROTOCOL),
        (START + HEAD + frame(DATA, 8, 1, b"\x09"), PROTOCOL),
        (START + HEAD + HEAD, PROTOCOL),
        (START + frame(DATA, 0, 1, bytes(16_385)), SIZE),
        (START + frame(HEADERS, END_HEADERS | END_STREAM, 1, HEAD[9:]) + frame(DATA, 0, 1, b"x"), CLOSED),
        (START + frame(HEADERS, END_HEADERS | END_STREAM, 1, HEAD[9:]) + frame(HEADERS, 5, 1, HEAD[9:]), CLOSED),
    ],
)
def test_connection_errors(server: Server, data: bytes, code: int) -> None:
    """Sections 3.4, 5.1, 5.1.1, 6 and 4.3."""
    assert outcome(server, data) == ("connection", code)


def test_unknown_frames_and_settings_are_ignored(server: Server) -> None:
    assert outcome(server, START + frame(99, 0, 0, b"x") + settings(99, 1) + settings(2, 1) + GOOD) == ("status", 0)


def test_trailers_with_a_pseudo_header(server: Server) -> None:
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, PSEUDO[0])
    assert outcome(server, START + HEAD + frame(DATA, 0, 1, BODY[:3]) + trailers) == ("stream", PROTOCOL)


@pytest.mark.parametrize(("body", "status"), [(b"", 12), (BODY + BODY, 12), (BODY[:-1], 12), (BODY, 0)])
def test_a_unary_call_takes_one_message(server: Server, body: bytes, status: int) -> None:
    """FIELD 20: UNIMPLEMENTED, as gRPC's list of status codes says for a cardinality violation."""
    assert outcome(server, START + request(*PSEUDO, *REGULAR, body=body)) == ("status", status)


@pytest.mark.parametrize("timeout", [b"", b"1", b"x", b"1x", b"-1S", b"123456789S"])
def test_malformed_timeout(server: Server, timeout: bytes) -> Any:
    fields = (*PSEUDO, *REGULAR, header("grpc-timeout", timeout))
    assert outcome(server, START + request(*fields)) == ("status", 3)
