# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The hostile tenth of a soak's traffic: 27 kinds, with raw sockets.

``python soak_hostile.py REST_PORT GRPC_PORT PER_SECOND`` goes on until its input ends, then prints how often each
kind was done. It is a process of its own, so that it does not hold up the clients whose latency is measured.
"""

import gzip
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import http2
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages

MIB = 1 << 20
INFER = "/inference.GRPCInferenceService/ModelInfer"
LARGE_ROWS = 30_000  # of two numbers each: an answer that is counted, in a body within the soak's limit
MOST_HELD = 40  # connections that wait; the server's own limit is for all clients
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: close by a reset
TIMEOUT_SECONDS = 10


def rest(body: bytes, *lines: str, model: str = "tiny") -> bytes:
    """A REST inference."""
    head = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join((*head, "", "")).encode() + body


def rest_tensor(data: bytes, rows: int) -> bytes:
    """A body with this text as its data."""
    head = json.dumps({"name": "x", "datatype": "FP32", "shape": [rows, 2]}).encode()
    return b'{"inputs":[%b,"data":[%b]}]}' % (head[:-1], data)


def grpc_frames(stream: int, message: bytes) -> bytes:
    """A call whose body is cut into frames."""
    body = http2.message(message)
    parts = [http2.call(stream, INFER, b"", 0)]
    for start in range(0, len(body), 16384):
        last = http2.END_STREAM if start + 16384 >= len(body) else 0
        parts.append(http2.frame(http2.DATA, last, stream, body[start : start + 16384]))
    return b"".join(parts)


def grpc_message(model: str, rows: int, value: float) -> bytes:
    """A ModelInferRequest."""
    message = messages.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 2]).contents.fp32_contents.extend([value] * (2 * rows))
    return message.SerializeToString()


START = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
SMALL = rest_tensor(b"1,2", 1)
LARGE = rest_tensor(b",".join([b"1.5"] * (2 * LARGE_ROWS)), LARGE_ROWS)
FAILING = rest_tensor(b"null," + b",".join([b"1.5"] * (2 * LARGE_ROWS - 1)), LARGE_ROWS)  # the model refuses NaN
LARGE_MESSAGE = grpc_message("tiny", LARGE_ROWS, 1.5)
FAILING_CALL = START + grpc_frames(1, grpc_message("tiny", LARGE_ROWS, float("nan")))
EMPTY_TENSORS = START + grpc_frames(1, b"\x0a\x04tiny" + b"\x2a\0" * 400_000)
SMALL_CALL = START + grpc_frames(1, grpc_message("tiny", 1, 1.0))
NO_WINDOW = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"\0\4\0\0\0\0")  # SETTINGS_INITIAL_WINDOW_SIZE 0
BOMB = gzip.compress(bytes(66 * MIB))
OBJECTS = b'{"inputs":[' + b"{}," * (300 * 1024) + b"{}]}"
REPEATED = b'{"inputs":[{' + b'"data":[1],' * 20_000


class Hostile:
    """Connections that misbehave; what comes back does not matter."""

    def __init__(self, rest_port: int, grpc_port: int) -> None:
        self.chance = random.Random(99)  # noqa: S311 - no secret: the same choices in each run
        self.ports = {"rest": rest_port, "grpc": grpc_port}
        self.held: deque[socket.socket] = deque()

    def connect(self, protocol: str) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.ports[protocol]), timeout=TIMEOUT_SECONDS)

    def hold(self, connection: socket.socket) -> None:
        """Keep it open for as long as the server endures it, or others need its place."""
        self.held.append(connection)
        if len(self.held) > MOST_HELD:
            self.held.popleft().close()

    def ask(self, protocol: str, data: bytes) -> None:
        """Send, and take what comes of the answer at first."""
        with self.connect(protocol) as connection:
            connection.sendall(data)
            connection.recv(65536)

    def leave(self, protocol: str, data: bytes) -> None:
        """Send, and leave by a reset without reading."""
        with self.connect(protocol) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.sendall(data)

    def never_read(self, protocol: str, data: bytes) -> None:
        """Send, and keep the connection without reading."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(("127.0.0.1", self.ports[protocol]))
        self.hold(connection)
        connection.sendall(data)

    def cut(self) -> bytes:
        """The beginning of a request."""
        data = rest(SMALL)
        return data[: self.chance.randrange(len(data))]

    def half_closed(self) -> None:
        """A request that ends in the middle."""
        with self.connect("rest") as connection:
            connection.sendall(self.cut())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)

    def resets(self) -> bytes:
        """Calls that are taken back at once."""
        calls = (
            grpc_frames(stream, b"") + http2.frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in range(1, 100, 2)
        )
        return START + b"".join(calls)

    def frames(self) -> bytes:
        """Frames of any kind, flags, stream and content."""
        any_number = self.chance.randrange
        return START + b"".join(
            http2.frame(any_number(12), any_number(256), any_number(8), self.chance.randbytes(any_number(64)))
            for _ in range(20)
        )

    def kinds(self) -> dict[str, Callable[[], None]]:
        """What there is to do."""
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        chunked = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        return {
            "gzip bomb": lambda: self.ask("rest", rest(BOMB, "Content-Encoding: gzip")),
            "failing model, REST": lambda: self.ask("rest", rest(FAILING)),
            "failing model, gRPC": lambda: self.ask("grpc", FAILING_CALL),
            "leaves without reading, REST": lambda: self.leave("rest", rest(LARGE)),
            "leaves without reading, gRPC": lambda: self.leave("grpc", START + grpc_frames(1, LARGE_MESSAGE)),
            "unread answers, REST": lambda: self.never_read("rest", rest(LARGE) * 3),
            "window 0, gRPC": lambda: self.never_read(
                "grpc", NO_WINDOW + b"".join(grpc_frames(stream, LARGE_MESSAGE) for stream in (1, 3, 5))
            ),
            "{} bodies": lambda: self.ask("rest", rest(OBJECTS)),
            "empty tensors, gRPC": lambda: self.ask("grpc", EMPTY_TENSORS),
            "deep nesting": lambda: self.ask("rest", rest(rest_tensor(b"[" * 200_000, 1))),
            "open objects": lambda: self.ask("rest", rest(b"{" * 200_000)),
            "open strings": lambda: self.ask("rest", rest(b'\\"' * 100_000)),
            "repeated data": lambda: self.ask("rest", rest(REPEATED)),
            "malformed frames": lambda: self.ask("grpc", self.frames()),
            "rapid reset": lambda: self.leave("grpc", self.resets()),
            "slow headers": lambda: self.never_read("rest", b"GET /v2/health/live HTTP/1.1\r\nHost:"),
            "stalled body": lambda: self.never_read("rest", rest(SMALL)[:-5]),
            "stalled call": lambda: self.never_read("grpc", SMALL_CALL[:-5]),
            "chunk extensions": lambda: self.ask("rest", chunked + (b"1;" + b"e" * 4000 + b"\r\n1\r\n") * 20),
            "Upgrade": lambda: self.ask("rest", rest(SMALL, *upgrade)),
            "bad Host": lambda: self.ask("rest", b"GET /v2 HTTP/1.1\r\nHost: a b/c\r\nHost: d\r\n\r\n"),
            "long URL": lambda: self.ask("rest", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n"),
            "pipelined": lambda: self.leave("rest", b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n" * 300),
            "cut by a reset": lambda: self.leave("rest", self.cut()),
            "half-closed": self.half_closed,
            "garbage": lambda: self.ask(self.chance.choice(["rest", "grpc"]), self.chance.randbytes(2000)),
            "too large": lambda: self.ask("rest", rest(SMALL).replace(b"Length: ", b"Length: 99999")),
        }


def main() -> None:
    """Do what there is to do, in turns, at that rate until the input ends."""
    rest_port, grpc_port, per_second = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    hostile = Hostile(rest_port, grpc_port)
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    counts: Counter[str] = Counter()
    kinds = list(hostile.kinds().items())
    following = time.monotonic()
    while not ended.wait(max(0.0, following - time.monotonic())):
        following = max(following + 1 / per_second, time.monotonic() - 1)
        name, kind = kinds[counts.total() % len(kinds)]
        with suppress(OSError):  # the server may end the connection at any time
            kind()
        counts[name] += 1
    for connection in hostile.held:
        connection.close()
    print(json.dumps(counts), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
