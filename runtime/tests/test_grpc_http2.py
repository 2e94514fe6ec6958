# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 under the gRPC listener, frame by frame: cuts, windows, padding, limits, and how it ends (RFC 9113)."""

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
import http2
import numpy as np
import pytest
from authority import Authority
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from hostile import connect
from serving import SERVICE, Server, features_message

ROWS = [[1.0, 2.0, 3.0, 4.0]]
BODY = http2.message(features_message(ROWS).SerializeToString())
START = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
INFER = SERVICE + "ModelInfer"
ACK, PADDED, PRIORITY = 0x1, 0x8, 0x20


class Client:
    """A connection that sends what it is told and gives the frames that come."""

    def __init__(self, server: Server, settings: bytes = b"") -> None:
        self.socket = connect(server.grpc_port)
        self._received = b""
        self.send(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, settings))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame, until the server closes."""
        while True:
            while len(self._received) < 9 or len(self._received) < 9 + int.from_bytes(self._received[:3], "big"):
                try:
                    part = self.socket.recv(65536)
                except ConnectionResetError:
                    return
                if not part:
                    return
                self._received += part
            length = int.from_bytes(self._received[:3], "big")
            kind, flags, stream = struct.unpack(">BBL", self._received[3:9])
            payload = self._received[9 : 9 + length]
            self._received = self._received[9 + length :]
            yield kind, flags, stream, payload

    def next(self, wanted: int, *, ack: bool = False) -> tuple[int, int, bytes]:
        """Flags, stream and payload of the next frame of that kind."""
        for kind, flags, stream, payload in self.frames():
            if kind == wanted and (not ack or flags & ACK):
                return flags, stream, payload
        raise AssertionError(f"the server closed without a frame of kind {wanted}")

    def answer(self, number: int) -> bytes:
        """The data of a stream until its end, which must be a status of 0."""
        return self.answers((number,))[number]

    def answers(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The same of several streams, whose answers may come in any order."""
        data = dict.fromkeys(numbers, b"")
        missing = set(numbers)
        for kind, flags, stream, payload in self.frames():
            if kind == http2.DATA and stream in missing:
                data[stream] += payload
            if kind == http2.HEADERS and flags & http2.END_STREAM and stream in missing:
                assert b"grpc-status\x010" in payload, payload
                missing.remove(stream)
                if not missing:
                    return data
        raise AssertionError(f"the server closed before streams {missing} ended")


def check(data: bytes) -> None:
    response = messages.ModelInferResponse.FromString(data[5:])
    assert (data[0], int.from_bytes(data[1:5], "big")) == (0, len(data) - 5)
    assert response.raw_output_contents[1] == (2).to_bytes(8, "little")


@pytest.mark.parametrize("size", [1, 2, 9, 10, 100])
def test_any_cut_of_the_bytes_means_the_same(server: Server, size: int) -> None:
    whole = START + http2.call(1, INFER, BODY) + http2.call(3, INFER, BODY)
    with connect(server.grpc_port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = object.__new__(Client)
        client.socket, client._received = connection, b""
        for start in range(0, len(whole), size):
            connection.sendall(whole[start : start + size])
        for data in client.answers((1, 3)).values():
            check(data)


def test_padding_priority_continuation_and_trailers(server: Server) -> None:
    block = b"".join(
        (
            http2.header(":method", b"POST"),
            http2.header(":scheme", b"http"),
            http2.header(":path", INFER.encode()),
            http2.header("content-type", b"application/grpc"),
        )
    )
    with Client(server) as client:
        padded = bytes((3,)) + bytes(5) + block[:20] + bytes(3)
        client.send(http2.frame(http2.HEADERS, PADDED | PRIORITY, 1, padded))
        client.send(http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, block[20:]))
        client.send(http2.frame(http2.DATA, PADDED, 1, bytes((7,)) + BODY + bytes(7)))
        client.send(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, http2.header("a", b"b")))
        check(client.answer(1))


def test_answer_keeps_to_the_windows_of_the_client(server: Server) -> None:
    message = features_message(ROWS * 2000).SerializeToString()
    with Client(server, settings=struct.pack(">HL", 4, 0)) as client:
        body = http2.message(message)
        client.send(http2.call(1, INFER, b"", 0))
        for start in range(0, len(body), 16384):
            last = start + 16384 >= len(body)
            flags = http2.END_STREAM if last else 0
            client.send(http2.frame(http2.DATA, flags, 1, body[start : start + 16384]))
        client.next(http2.HEADERS)
        data = b""
        # Nothing comes without a window, and never more than it allows.
        client.send(http2.frame(http2.PING, 0, 0, b"12345678"))
        for kind, _, _, _ in client.frames():
            assert kind not in (http2.DATA, http2.HEADERS)
            if kind == http2.PING:
                break
        for size in (1, 7, 1000):
            client.send(http2.frame(http2.WINDOW_UPDATE, 0, 1, size.to_bytes(4, "big")))
            while size:
                _, _, payload = client.next(http2.DATA)
                size -= len(payload)
                data += payload
                assert size >= 0
        # The window of the connection, 64 KiB at first, holds as well.
        client.send(http2.frame(http2.WINDOW_UPDATE, 0, 1, (2**30).to_bytes(4, "big")))
        client.send(http2.frame(http2.WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big")))
        data += client.answer(1)
    assert len(messages.ModelInferResponse.FromString(data[5:]).raw_output_contents[0]) == 2000 * 12


def test_many_calls_on_one_connection(server: Server) -> None:
    with Client(server, settings=struct.pack(">HL", 4, 2**20)) as client:
        numbers = range(1, 601, 2)
        client.send(b"".join(http2.call(number, INFER, BODY) for number in numbers))
        for data in client.answers(numbers).values():
            check(data)


def test_large_messages(server: Server) -> None:
    message = messages.ModelInferRequest(model_name="perceptron")
    message.inputs.add(name="features", datatype="FP32", shape=[3_500_000, 4])
    message.raw_input_contents.append(np.ones((3_500_000, 4), "<f4").tobytes())
    assert len(server.grpc("ModelInfer", message).raw_output_contents[0]) == 3_500_000 * 12


def test_body_that_does_not_come_in_time(start_server: Any) -> None:
    server = start_server(limits={"receive_seconds": 0.2})
    server.wait_ready()
    with Client(server) as client:
        client.send(http2.call(1, INFER, BODY[:-1], 0))
        _, _, payload = client.next(http2.HEADERS)
        assert b"grpc-status\x014" in payload
        assert b"not complete within 0.2 s" in payload
        # The client is told to send no more.
        assert client.next(http2.RST_STREAM)[2] == (0).to_bytes(4, "big")
        client.send(http2.call(3, INFER, BODY))
        check(client.answer(3))


def test_idle_connection_ends_with_goaway(start_server: Any) -> None:
    server = start_server(limits={"idle_seconds": 0.3})
    server.wait_ready()
    with Client(server) as client:
        client.send(http2.call(1, INFER, BODY))
        check(client.answer(1))
        assert client.next(http2.GOAWAY)[2] == struct.pack(">LL", 2**31 - 1, 0)
        client.send(http2.frame(http2.PING, ACK, 0, client.next(http2.PING)[2]))
        assert client.next(http2.GOAWAY)[2] == struct.pack(">LL", 1, 0)
        assert list(client.frames()) == []


def test_connections_over_the_limit_are_closed(start_server: Any) -> None:
    server = start_server(limits={"connections": 2})
    server.wait_ready()
    with Client(server) as first, Client(server) as second:
        for client in (first, second):
            client.next(http2.SETTINGS, ack=True)
        with connect(server.grpc_port) as third:
            assert third.recv(100) == b""
        first.send(http2.call(1, INFER, BODY))
        check(first.answer(1))


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda _: http2.frame(http2.PING, 0, 0, bytes(8)), id="pings"),
        pytest.param(lambda _: http2.frame(http2.SETTINGS, 0, 0), id="settings"),
        pytest.param(
            lambda number: http2.call(number, INFER, BODY[:-1], 0) + http2.frame(http2.RST_STREAM, 0, number, bytes(4)),
            id="resets",
        ),
        pytest.param(
            lambda number: http2.call(number, INFER, BODY[:-1], 0) + http2.frame(8, 0, number, bytes(4)),
            id="resets that the client provokes",
        ),
        pytest.param(lambda _: http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), id="windows"),
    ],
)
def test_frames_that_ask_for_nothing_end_the_connection(server: Server, attack: Any) -> None:
    with Client(server) as client:
        client.socket.settimeout(60)
        try:
            for number in range(1, 8001, 2):
                client.send(attack(number))
        except (BrokenPipeError, ConnectionResetError):
            return  # sent away already
        assert client.next(http2.GOAWAY)[2][4:8] == (0xB).to_bytes(4, "big")


def test_stop_answers_what_comes_before_the_client_has_heard(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    with Client(server) as client:
        client.send(http2.call(1, INFER, BODY))
        check(client.answer(1))
        server.process.terminate()
        assert client.next(http2.GOAWAY)[2] == struct.pack(">LL", 2**31 - 1, 0)
        # On its way while the server was asked to stop.
        client.send(http2.call(3, INFER, BODY))
        check(client.answer(3))
        client.send(http2.frame(http2.PING, ACK, 0, b"draining"))
        assert client.next(http2.GOAWAY)[2] == struct.pack(">LL", 3, 0)
        # From here on it is the client's to ask elsewhere.
        client.send(http2.call(5, INFER, BODY))
        assert [frame for frame in client.frames() if frame[2] == 5] == []
    assert server.process.wait(240) == 0


def test_tls_takes_http2_alone(start_server: Any, tmp_path: Any) -> None:
    authority = Authority(tmp_path)
    server = start_server(tls=authority.files)
    server.wait_ready()
    for port, offered, taken in (
        (server.grpc_port, ["h2", "http/1.1"], "h2"),
        (server.rest_port, ["h2", "http/1.1"], "http/1.1"),
    ):
        context = authority.context()
        context.set_alpn_protocols(offered)
        with connect(port) as tcp, context.wrap_socket(tcp, server_hostname="127.0.0.1") as tls:
            assert tls.selected_alpn_protocol() == taken
    assert server.grpc("ModelInfer", features_message(ROWS), credentials=authority.credentials())
    with pytest.raises(grpc.RpcError):
        server.grpc("ModelInfer", features_message(ROWS))
