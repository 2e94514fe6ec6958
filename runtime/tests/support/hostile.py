# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Raw sockets for attacks, and what an attack may leave behind in the server process."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serving import Server, features_message, features_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]
PATIENCE = 240  # seconds until something that must happen is taken for missing
MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """What a process holds: open descriptors, threads, and bytes of resident memory now and at most."""

    descriptors: int
    threads: int
    resident: int
    peak: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Read /proc."""
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE)}
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(descriptors, numbers["Threads"], numbers["VmRSS"] * 1024, numbers["VmHWM"] * 1024)


def forget_peak(pid: int) -> None:
    """Let the highest resident memory of a process count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def unharmed(server: Server, memory: int, descriptors: int = 4, threads: int = 4) -> Iterator[None]:
    """What runs within may not harm the server.

    Afterwards it answers correctly and has at most that many descriptors and threads more than
    before; its resident memory never grew by more than ``memory`` bytes.
    """
    answers_correctly(server)
    forget_peak(server.process.pid)
    before = Usage.of(server.process.pid)
    yield
    answers_correctly(server)
    eventually(
        lambda: (
            Usage.of(server.process.pid).descriptors <= before.descriptors + descriptors
            and Usage.of(server.process.pid).threads <= before.threads + threads
        ),
        lambda: f"{before} before, {Usage.of(server.process.pid)} after",
    )
    after = Usage.of(server.process.pid)
    assert after.peak <= before.resident + memory, f"{before} before, {after} after"
    assert "Traceback" not in server.log, server.log


def answers_correctly(server: Server) -> None:
    """Live, ready, and one inference over each protocol."""
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert server.unix("GET", path).status == 200
    answer = server.unix("POST", "/v2/models/perceptron/infer", features_request(ROWS))
    assert answer.status == 200, answer
    assert answer.json["outputs"][1]["data"] == [2]
    response = server.grpc("ModelInfer", features_message(ROWS), target=f"unix:{server.grpc_socket}")
    assert response.raw_output_contents[1] == (2).to_bytes(8, "little")


def eventually(condition: Callable[[], bool], message: Callable[[], str]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def connect(port: int) -> socket.socket:
    """A TCP connection to loopback."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection, also by a reset."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return bytes(received)


def exchange(port: int, data: bytes, half_close: bool = False) -> bytes:
    """Send bytes, perhaps close the sending half, and give all that comes until the server closes."""
    with connect(port) as connection:
        with suppress(OSError):  # the server may have closed the connection already
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


def statuses(received: bytes) -> list[int]:
    """The status codes of HTTP answers that follow each other."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def inference(body: bytes, *headers: str, model: str = "perceptron") -> bytes:
    """An inference as bytes; without a header about its length it gets a right Content-Length."""
    names = {header.partition(":")[0].lower() for header in headers}
    if not names & {"content-length", "transfer-encoding"}:
        headers = (*headers, f"Content-Length: {len(body)}")
    head = "\r\n".join((f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", *headers, "", ""))
    return head.encode() + body


VALID_BODY = json.dumps(features_request(ROWS)).encode()
