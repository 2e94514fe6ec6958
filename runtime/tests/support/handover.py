# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One server process after another takes over the same ports, under load: ``python handover.py DIRECTORY MODEL``.

Runs in a network namespace of its own, where it may set sysctls. Prints counts and failures as JSON.
"""

import fcntl
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from serving import SERVICE, UnixConnection, ask, features_message, features_request

HANDOVERS = 4
REST_PORT, GRPC_PORT = 8000, 8001
ROWS = [[1.0, 2.0, 3.0, 4.0]]


def main() -> None:
    """Hand over several times while clients of all kinds ask without a pause."""
    directory, model = Path(sys.argv[1]), json.loads(sys.argv[2])
    _prepare_network()
    processes = [_start(directory / "0", model, as_candidate=False)]
    load = Load()
    load.start()
    load.wait_for_more(500)
    codes = []
    for number in range(1, HANDOVERS + 1):
        old, new = directory / str(number - 1), directory / str(number)
        processes.append(_start(new, model, as_candidate=True))
        _admin(new, "/activate", 200)
        load.wait_for_more(200)
        _admin(old, "/drain", 202)
        codes.append(processes[number - 1].wait(60))
        load.wait_for_more(500)
    load.stop()
    _admin(directory / str(HANDOVERS), "/drain", 202)
    codes.append(processes[-1].wait(60))
    print(json.dumps({"answered": load.answered, "failures": load.failures[:20], "exit_codes": codes}))


class Load:
    """Clients that never pause: REST on kept connections, REST on new ones, gRPC on kept and on new channels."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._over = threading.Event()
        kinds: list[Callable[[], None]] = [self._rest_kept, self._rest_kept, self._rest_new, self._grpc, self._grpc_new]
        self._threads = [threading.Thread(target=self._guarded, args=(kind,)) for kind in kinds]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Until every kind of client got that many more answers, or one failed."""
        kinds = ("REST kept", "REST new", "gRPC", "gRPC new")
        goal = {kind: self.answered[kind] + (count if kind != "gRPC new" else count // 10) for kind in kinds}
        while not self.failures and any(self.answered[kind] < goal[kind] for kind in kinds):
            self._over.wait(0.02)

    def _guarded(self, client: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                client()
        except Exception as error:
            self.failures.append(f"{client.__name__} after {dict(self.answered)}: {type(error).__name__}: {error}")

    def _rest_kept(self) -> None:
        """One connection until the server asks to close it."""
        connection = http.client.HTTPConnection("127.0.0.1", REST_PORT, timeout=240)
        while not self._over.is_set():
            if self._rest(connection, "REST kept") == "close":
                break
        connection.close()

    def _rest_new(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", REST_PORT, timeout=240)
        self._rest(connection, "REST new")
        connection.close()

    def _rest(self, connection: http.client.HTTPConnection, kind: str) -> str:
        connection.request("POST", "/v2/models/perceptron/infer", json.dumps(features_request(ROWS)))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200 or len(json.loads(body)["outputs"]) != 2:
            raise ValueError(f"{response.status} {body[:200]!r}")
        self.answered[kind] += 1
        return response.getheader("connection", "")

    def _grpc(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
            while not self._over.is_set():
                self._call(channel, "gRPC")

    def _grpc_new(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            self._call(channel, "gRPC new")

    def _call(self, channel: grpc.Channel, kind: str) -> None:
        call = channel.unary_unary(
            SERVICE + "ModelInfer", messages.ModelInferRequest.SerializeToString, messages.ModelInferResponse.FromString
        )
        if len(call(features_message(ROWS), timeout=240).outputs) != 2:
            raise ValueError("an answer lacks outputs")
        self.answered[kind] += 1


def _prepare_network() -> None:
    with socket.socket() as any_socket:  # set the loopback interface up
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)
        fcntl.ioctl(any_socket, 0x8914, request)
    Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text("1")


def _start(directory: Path, model: dict[str, Any], as_candidate: bool) -> subprocess.Popen[bytes]:
    directory.mkdir()
    listen = {
        "rest": [f"127.0.0.1:{REST_PORT}", f"unix:{directory}/rest.sock"],
        "grpc": [f"127.0.0.1:{GRPC_PORT}"],
        "admin": [f"unix:{directory}/admin.sock"],
    }
    (directory / "runtime.json").write_text(json.dumps({"listen": listen, "models": [model]}))
    command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(directory / "runtime.json")]
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(command + ["--candidate"] * as_candidate, stdout=log, stderr=log)
    while process.poll() is None:
        try:
            if ask(UnixConnection(directory / "rest.sock"), "GET", "/v2/health/ready").status == 200:
                return process
        except OSError:
            pass
    raise RuntimeError((directory / "server.log").read_text())


def _admin(directory: Path, path: str, status: int) -> None:
    answer = ask(UnixConnection(directory / "admin.sock"), "POST", path)
    if answer.status != status:
        raise RuntimeError(f"{path}: {answer}")


if __name__ == "__main__":
    main()
