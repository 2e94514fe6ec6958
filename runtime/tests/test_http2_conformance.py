# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 under the gRPC listener to the letter; ``http2_cases`` has the cases."""

import struct
from typing import Any, BinaryIO

import http2
import pytest
from hostile import connect
from http2 import DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, header
from http2_cases import (
    ACK,
    BODY,
    CASES,
    FIELDS,
    FOLLOWING,
    OK,
    REFUSED,
    START,
    Case,
    Verdict,
    body,
    head,
    ping,
    request,
    settings,
    stream_error,
    window,
)
from serving import Server


class Frames:
    """What the server sends, frame by frame."""

    def __init__(self, received: BinaryIO) -> None:
        self._received = received
        self.ended: dict[int, Verdict] = {}

    def until(self, stream: int) -> Verdict:
        """How a stream or the connection ends, and with which code."""
        while stream not in self.ended:
            kind, flags, number_, payload = http2.read_frame(self._received)
            assert not (kind == PING and payload == b"unasked!")
            if kind == GOAWAY:
                return "connection", struct.unpack(">LL", payload[:8])[1]
            if kind == RST_STREAM:
                self.ended.setdefault(number_, ("stream", struct.unpack(">L", payload)[0]))
            if kind == HEADERS and flags & END_STREAM:
                self.ended[number_] = _answer(payload)
        return self.ended[stream]


def _answer(block: bytes) -> Verdict:
    if b"grpc-status" in block:
        status = block.split(b"grpc-status")[1]
        return "status", int(status[1 : 1 + status[0]])
    status = block.split(b":status")[1]
    return "http", int(status[1 : 1 + status[0]])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section} {case.what}")
def test_case(server: Server, case: Case) -> None:
    with connect(server.grpc_port) as connection, connection.makefile("rb") as received:
        frames = Frames(received)
        for part in case.sent:
            if isinstance(part, int):
                assert frames.until(part) == OK
                del frames.ended[part]
            else:
                connection.sendall(part)
        assert frames.until(case.stream) == case.verdict
        if case.verdict[0] == "connection":
            assert received.read() == b""  # section 5.4.1: it is closed
        else:
            connection.sendall(request(stream=FOLLOWING))
            assert frames.until(FOLLOWING) == OK


def test_every_case_has_a_name_of_its_own() -> None:
    names = [(each.section, each.what) for each in CASES]
    assert len(set(names)) == len(names)


def test_server_preface(server: Server) -> None:
    """3.4: SETTINGS come first. 6.5.3: the client's are acknowledged at once. 6.7: so is a PING, with its payload."""
    with connect(server.grpc_port) as connection, connection.makefile("rb") as received:
        connection.sendall(START + ping(b"88888888"))
        assert http2.read_frame(received)[:3] == (SETTINGS, 0, 0)
        frames = [http2.read_frame(received) for _ in range(3)]
        assert [each[0] for each in frames] == [WINDOW_UPDATE, SETTINGS, PING]
        assert frames[1] == (SETTINGS, ACK, 0, b"")
        assert frames[2] == (PING, ACK, 0, b"88888888")


def test_more_streams_than_allowed(server: Server) -> None:
    """5.1.2: those beyond MAX_CONCURRENT_STREAMS are refused, the others go on."""
    with connect(server.grpc_port) as connection, connection.makefile("rb") as received:
        announced = dict(struct.iter_unpack(">HL", http2.read_frame(received)[3]))
        most = announced[3]
        connection.sendall(START + b"".join(head(stream=1 + 2 * index) for index in range(most + 1)))
        frames = Frames(received)
        assert frames.until(1 + 2 * most) == stream_error(REFUSED)
        connection.sendall(body())
        assert frames.until(1) == OK


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([(settings(4, 1), 1)], id="6.9.1 window of 1"),
        pytest.param([(settings(4, 0), 0), (settings(4, 1), 1)], id="6.9.2 window that grows after HEADERS"),
        pytest.param([(settings(4, 3), 3), (settings(4, 2), 0), (window(2, 1), 1)], id="6.9.2 negative window"),
        pytest.param([(frame(SETTINGS, 0, 0, struct.pack(">HLHL", 4, 9, 4, 1)), 1)], id="6.5.3 values in order"),
    ],
)
def test_sends_no_more_than_the_window(server: Server, steps: list[tuple[bytes, int]]) -> None:
    """A request after the first step; after each step that many bytes come."""
    with connect(server.grpc_port) as connection, connection.makefile("rb") as received:
        connection.sendall(START + steps[0][0] + request())
        while http2.read_frame(received)[0] != HEADERS:
            pass
        for index, (sent, size) in enumerate(steps):
            connection.sendall((sent if index else b"") + ping())
            seen = {PING: -1, DATA: 0}
            while seen[PING] < 0 or seen[DATA] < size:
                kind, _, _, payload = http2.read_frame(received)
                seen[kind] = seen.get(kind, 0) + len(payload)
            assert seen[DATA] == size
        connection.sendall(window(1 << 20, 1))
        assert Frames(received).until(1) == OK


@pytest.mark.parametrize(("sent", "status"), [(b"", 12), (BODY + BODY, 12), (BODY[:-1], 12), (BODY, 0)])
def test_a_unary_call_takes_one_message(server: Server, sent: bytes, status: int) -> None:
    """UNIMPLEMENTED, as gRPC's list of status codes says for a cardinality violation."""
    assert outcome(server, head() + body(sent)) == ("status", status)


@pytest.mark.parametrize("timeout", [b"", b"1", b"x", b"1x", b"-1S", b"123456789S"])
def test_malformed_timeout(server: Server, timeout: bytes) -> Any:
    assert outcome(server, request(*FIELDS, header("grpc-timeout", timeout))) == ("status", 3)


def outcome(server: Server, sent: bytes) -> Verdict:
    """How stream 1 ends."""
    with connect(server.grpc_port) as connection, connection.makefile("rb") as received:
        connection.sendall(START + sent)
        return Frames(received).until(1)
