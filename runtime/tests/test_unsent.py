# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Answers that nobody reads are bounded: of a connection, of a listener, and of the whole server."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import http2
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from engines import scaled
from in_process import InProcess, resident_bytes, serving, settled

MIB = 1 << 20
ROWS = MIB // 8  # of a tensor of 1 MiB
LIMITS = {"unsent_bytes": 12 * MIB, "unsent_listener_bytes": 8 * MIB, "unsent_connection_bytes": 4 * MIB}
CALL = "/inference.GRPCInferenceService/ModelInfer"
TAKE_PART = 64 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with serving(scaled(tmp_path_factory.mktemp("models"), 2.0, shape=("rows", 2)), limits=LIMITS) as running:
        yield running


def rest_request(rows: int) -> bytes:
    tensor = f'{{"name":"x","datatype":"FP32","shape":[{rows},2],"parameters":{{"binary_data_size":{8 * rows}}}}}'
    text = f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true}}}}'.encode()
    head = (
        f"POST /v2/models/scaled/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(text) + 8 * rows}\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text + bytes(8 * rows)


def grpc_message(rows: int) -> bytes:
    message = messages.ModelInferRequest(model_name="scaled", raw_input_contents=[bytes(8 * rows)])
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
    return http2.message(message.SerializeToString())


def call(stream: int, body: bytes, method: str = CALL) -> bytes:
    frames = [http2.call(stream, method, b"", 0)]
    for start in range(0, len(body), 16384):
        flags = http2.END_STREAM if start + 16384 >= len(body) else 0
        frames.append(http2.frame(http2.DATA, flags, stream, body[start : start + 16384]))
    return b"".join(frames)


class Client:
    """A gRPC client that gives windows as it likes."""

    def __init__(self, port: int, window: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=240)
        self._file = self._socket.makefile("rb")
        settings = http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 4, window))
        self.send(http2.PREFACE + settings + http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">L", 1 << 30)))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ended(self, count: int) -> dict[int, bytes]:
        """The header blocks of the first streams that end, by number."""
        found: dict[int, bytes] = {}
        while len(found) < count:
            kind, flags, number, payload = http2.read_frame(self._file)
            if kind == http2.HEADERS and flags & http2.END_STREAM:
                found[number] = payload
        return found

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def metric(server: InProcess, name: str) -> float:
    lines = server.metrics.exposition().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def is_empty(server: InProcess) -> bool:
    return server.unsent.bytes == 0


def test_calls_of_one_connection(server: InProcess) -> None:
    """A window of 0; what does not fit ends with the standard error, the rest is answered later."""
    client = Client(server.grpc_port, window=0)
    body = grpc_message(ROWS)
    for number in range(10):
        client.send(call(2 * number + 1, body))
    refused = client.ended(7)
    assert all(b"grpc-status\x018" in block for block in refused.values()), refused
    assert 3 * MIB <= server.unsent.bytes <= 4 * MIB
    left = [2 * number + 1 for number in range(10) if 2 * number + 1 not in refused]
    client.send(b"".join(http2.frame(http2.WINDOW_UPDATE, 0, number, struct.pack(">L", 2 * MIB)) for number in left))
    assert all(block.endswith(b"grpc-status\x010") for block in client.ended(3).values())
    assert settled(lambda: is_empty(server))
    client.close()


def test_calls_go_with_their_connection(server: InProcess) -> None:
    client = Client(server.grpc_port, window=0)
    for number in range(4):
        client.send(call(2 * number + 1, grpc_message(ROWS)))
    client.ended(1)
    client.close()
    assert settled(lambda: is_empty(server))


def test_a_call_that_is_reset_waits_no_more(server: InProcess) -> None:
    client = Client(server.grpc_port, window=0)
    client.send(call(1, grpc_message(ROWS)))
    assert settled(lambda: server.unsent.bytes > MIB)
    client.send(http2.frame(http2.RST_STREAM, 0, 1, struct.pack(">L", 8)))
    assert settled(lambda: is_empty(server))
    client.close()


def test_a_stream_counts_answers_that_wait_for_their_turn(server: InProcess) -> None:
    client = Client(server.grpc_port, window=0)
    client.send(call(1, grpc_message(ROWS) * 12, "/inference.GRPCInferenceService/ModelStreamInfer"))
    assert settled(lambda: server.unsent.bytes > 3 * MIB)
    assert server.unsent.bytes <= 5 * MIB
    client.close()
    assert settled(lambda: is_empty(server))


def test_connections_of_a_listener(server: InProcess) -> None:
    """With more connections: the listener's limit holds."""
    with ExitStack() as stack:
        clients = [Client(server.grpc_port, window=0) for _ in range(6)]
        for client in clients:
            stack.callback(client.close)
            for number in (1, 3):
                client.send(call(number, grpc_message(ROWS)))
        assert settled(lambda: server.unsent.bytes > 7 * MIB)
        assert server.unsent.bytes <= 8 * MIB
    assert settled(lambda: is_empty(server))


def test_a_client_with_a_window_that_does_not_read(server: InProcess) -> None:
    """The window lets all go, the socket does not: the transport's buffer counts as well."""
    refused = server.unsent.refused
    with ExitStack() as stack:
        for _ in range(6):
            client = Client(server.grpc_port, window=(1 << 31) - 1)
            stack.callback(client.close)
            client.send(call(1, grpc_message(8 * ROWS)))
        assert settled(lambda: server.unsent.refused > refused)
        assert server.unsent.bytes <= 2 * 9 * MIB
    assert settled(lambda: is_empty(server))


def test_rest_connections(server: InProcess) -> None:
    """Those beyond the limit of the listener get the standard error, and memory stays bounded."""
    before = resident_bytes()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_port))) for _ in range(20)]
        for client in clients:
            client.settimeout(240)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(rest_request(6 * ROWS))
        codes = [client.recv(TAKE_PART)[9:12] for client in clients]
        assert codes.count(b"200") + codes.count(b"429") == 20
        assert 1 <= codes.count(b"200") <= 3, codes
        assert 0 < server.unsent.bytes <= 12 * MIB
        assert resident_bytes() < before + 100 * MIB
        assert metric(server, "edgeml_unsent_answer_bytes") == server.unsent.bytes
        assert metric(server, "edgeml_dropped_answers_total") >= 17
    assert settled(lambda: is_empty(server))


def test_an_answer_that_is_taken_slowly_is_whole(server: InProcess) -> None:
    """Two answers are more than Linux takes for a client that does not read, which is 4 MiB (tcp_wmem) and a little."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=240) as client:
        request = rest_request(3 * ROWS)
        client.sendall(request + request)
        assert settled(lambda: server.unsent.bytes > MIB)
        received = 0
        while received < 6 * MIB + 200:
            received += len(client.recv(TAKE_PART))
    assert settled(lambda: is_empty(server))
