# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""How long a health check waits while a client sends the worst bodies, and what memory they take.

``python runtime/benchmarks/worst_bodies.py [SECONDS [NAME ...]]`` on loopback: one client sends one of the bodies again
and again, another asks for ``/v2/health/live`` every few milliseconds. Prints a table. Let the machine do nothing else.
"""

import json
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
os.environ["PYTHONPATH"] = sys.path[1]  # of the server process

import http2
from hostile import Usage, forget_peak
from onnx import TensorProto, helper
from onnx_models import ModelDirectory, save
from serving import SERVICE, Server

MIB = 1 << 20
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
PAUSE_SECONDS = 0.004


def tensor(data: bytes, shape: list[int]) -> bytes:
    """A REST inference with this text as its data."""
    head = json.dumps({"name": "x", "datatype": "FP32", "shape": shape}).encode()
    return b'{"inputs":[' + head[:-1] + b',"data":[' + data + b"]}]}"


def numbers() -> bytes:
    """57 MiB of ``1,1,…``."""
    count = 57 * MIB // 2
    return tensor(b"1," * (count - 1) + b"1", [1, count])


def lists() -> bytes:
    """38 MiB of ``[1],[1],…``."""
    count = 38 * MIB // 4
    return tensor(b"[1]," * (count - 1) + b"[1]", [count, 1])


def strings() -> bytes:
    """38 MiB of strings where there should be numbers."""
    count = 38 * MIB // 4
    return tensor(b'"a",' * (count - 1) + b'"a"', [1, count])


BODIES: dict[str, Callable[[], bytes]] = {
    "objects": lambda: b'{"inputs":[' + b"{}," * (20 * MIB // 3) + b"{}]}",
    "open": lambda: b"{" * (20 * MIB),
    "quotes": lambda: b'\\"' * (10 * MIB),
    "repeated": lambda: b'{"inputs":[{' + b'"data":[1],' * (2 * MIB),
    "numbers": numbers,
    "lists": lists,
    "strings": strings,
    "answer": numbers,  # with an answer of as many numbers
    "grpc": lambda: b"\x0a\x01m" + b"\x2a\x00" * (15 * MIB // 2),  # eight million empty tensors
}


def request(name: str) -> bytes:
    """What is sent on a connection."""
    body = BODIES[name]()
    if name != "grpc":
        name = "same" if name == "answer" else "m"
        return b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
            name.encode(),
            len(body),
            body,
        )
    body = http2.message(body)
    parts = [http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0), http2.call(1, SERVICE + "ModelInfer", b"", 0)]
    for start in range(0, len(body), 16384):
        flags = http2.END_STREAM if start + 16384 >= len(body) else 0
        parts.append(http2.frame(http2.DATA, flags, 1, body[start : start + 16384]))
    return b"".join(parts)


def load(name: str, port: int, stop: Event) -> None:
    """Send the body until told to stop, each time on a new connection, and read the answer."""
    data = request(name)
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            with suppress(OSError):  # refused before all was sent
                connection.sendall(data)
            ends = b"grpc-status" if name == "grpc" else b"\r\n\r\n"
            received = bytearray()
            while ends not in received:
                received += _some(connection)
            head, _, begun = received.partition(ends)
            length = re.search(rb"content-length: (\d+)", head)
            left = int(length[1]) - len(begun) if length else 0
            while left > 0:
                left -= len(_some(connection))


def _some(connection: socket.socket) -> bytes:
    part = connection.recv(MIB)
    if not part:
        raise ConnectionError
    return part


def waits(port: int, seconds: float) -> list[float]:
    """How long each health check took, in milliseconds, sorted."""
    found = []
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            started = time.perf_counter()
            connection.sendall(LIVE)
            connection.recv(4096)
            found.append((time.perf_counter() - started) * 1000)
            time.sleep(PAUSE_SECONDS)
    return sorted(found)


def model(root: Path, name: str, operator: str) -> ModelDirectory:
    """A model that takes tensors of any size."""
    first, last = (helper.make_tensor_value_info(side, TensorProto.FLOAT, ["N", "M"]) for side in "xy")
    return save(root, name, helper.make_graph([helper.make_node(operator, ["x"], ["y"])], name, [first], [last]))


def row(name: str, found: list[float], memory: str) -> str:
    """A line of the table."""
    middle, high, most = found[len(found) // 2], found[int(len(found) * 0.99)], found[-1]
    return f"| {name} | {middle:.2f} | {high:.2f} | {most:.2f} | {memory} |"


def main() -> None:
    """Measure all bodies, or those named."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    root = Path(tempfile.mkdtemp())
    server = Server.start(root, [model(root, "m", "ReduceMax"), model(root, "same", "Identity")])
    try:
        server.wait_ready()
        time.sleep(2)
        print("| Body | p50 ms | p99 ms | longest ms | memory |\n|---|---|---|---|---|")
        print(row("none", waits(server.rest_port, seconds), ""), flush=True)
        for name in sys.argv[2:] or BODIES:
            before = Usage.of(server.process.pid).resident
            forget_peak(server.process.pid)
            stop = multiprocessing.Event()
            port = server.grpc_port if name == "grpc" else server.rest_port
            client = multiprocessing.Process(target=load, args=(name, port, stop))
            client.start()
            time.sleep(2)
            found = waits(server.rest_port, seconds)
            stop.set()
            client.join(60)
            client.kill()
            grown, size = Usage.of(server.process.pid).peak - before, len(BODIES[name]())
            print(row(name, found, f"{grown / MIB:.0f} MiB, {grown / size:.1f} times the body"), flush=True)
    finally:
        server.end()


if __name__ == "__main__":
    main()
