# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A server process, and clients of the protocol made of http.client and grpcio."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc  # type: ignore[import-untyped]
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import ModelDirectory
from ports import free_ports

SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class Server:
    """A server process with one TCP listener of each kind and unix sockets for REST and gRPC."""

    #: What Python runs.
    program: ClassVar[Sequence[str]] = ("-m", "edgeml_runtime")

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, ports: list[int]) -> None:
        self.process = process
        self.log_file = directory / "server.log"
        self.rest_port, self.grpc_port, self.metrics_port = ports
        self.rest_socket = directory / "rest.sock"
        self.grpc_socket = directory / "grpc.sock"
        self.admin_socket = directory / "admin.sock"
        self.ssl: ssl.SSLContext | None = None

    @classmethod
    def start(
        cls,
        directory: Path,
        models: list[ModelDirectory],
        arguments: Sequence[str] = (),
        more_listeners: Mapping[str, list[str]] | None = None,
        **settings: object,
    ) -> "Server":
        """Start a process; ``settings`` add to the configuration or replace parts of it, ``arguments`` to ``serve``."""
        ports = free_ports(3)
        listeners: dict[str, list[str]] = {
            "rest": [f"127.0.0.1:{ports[0]}", f"unix:{directory}/rest.sock"],
            "grpc": [f"127.0.0.1:{ports[1]}", f"unix:{directory}/grpc.sock"],
            "metrics": [f"127.0.0.1:{ports[2]}"],
            "admin": [f"unix:{directory}/admin.sock"],
        }
        for kind, addresses in (more_listeners or {}).items():
            listeners[kind] += addresses
        config = {
            "listen": listeners,
            "models": [model.config for model in models],
            **settings,
        }
        file = directory / "runtime.json"
        file.write_text(json.dumps(config))
        with (directory / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *cls.program, "serve", "--config", str(file), *arguments],
                stderr=log,
                stdout=log,
            )
        return cls(process, directory, ports)

    def end(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self.log_file.read_text()

    def wait_listening(self) -> None:
        """Until the REST socket answers."""
        self.wait(lambda: self.unix("GET", "/v2/health/live").status == 200)

    def wait_ready(self) -> None:
        """Until all models are loaded."""
        self.wait(lambda: self.unix("GET", "/v2/health/ready").status == 200)

    def change_config(self, **settings: object) -> None:
        """Replace parts of the configuration file."""
        file = self.log_file.with_name("runtime.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds; connections that fail meanwhile do not matter. Raises AssertionError after four minutes."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}: {self.log}")
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"the server did not answer: {self.log}")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=240)

    def connect(self, port: int | None = None) -> http.client.HTTPConnection:
        """A connection to the REST port, or another."""
        if self.ssl:
            return http.client.HTTPSConnection("127.0.0.1", port or self.rest_port, timeout=60, context=self.ssl)
        return http.client.HTTPConnection("127.0.0.1", port or self.rest_port, timeout=60)

    def rest(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        """One request over TCP."""
        return ask(self.connect(port), method, path, body, headers)

    def unix(self, method: str, path: str, body: bytes | str | dict[str, Any] | None = None) -> Answer:
        """One request over the unix socket."""
        return ask(UnixConnection(self.rest_socket), method, path, body)

    def infer(self, model: str, body: bytes | str | dict[str, Any], **headers: str) -> Answer:
        """POST an inference; underscores in header names stand for dashes."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.rest("POST", f"/v2/models/{model}/infer", body, names)

    def grpc(
        self,
        method: str,
        request: Any,
        target: str | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> Any:
        """One call; gives the response message of the method. Raises grpc.RpcError."""
        response = getattr(messages, f"{method}Response")
        target = target or f"127.0.0.1:{self.grpc_port}"
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )
        with channel:
            serialize = bytes if isinstance(request, bytes) else type(request).SerializeToString
            call = channel.unary_unary(SERVICE + method, serialize, response.FromString)
            return call(request, metadata=metadata, timeout=60)

    def grpc_error(self, method: str, request: Any, **options: Any) -> tuple[str, str]:
        """The status code and message of a call that must fail."""
        try:
            answer = self.grpc(method, request, **options)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"no error but {answer}")


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request on a connection, which is closed after it."""
    if isinstance(body, dict):
        body = json.dumps(body)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def features_request(rows: list[list[float]], **fields: Any) -> dict[str, Any]:
    """A REST inference of the perceptron."""
    data = [value for row in rows for value in row]
    tensor = {"name": "features", "datatype": "FP32", "shape": [len(rows), 4], "data": data}
    return {"inputs": [tensor], **fields}


def features_message(rows: list[list[float]]) -> messages.ModelInferRequest:
    """A gRPC inference of the perceptron, with typed contents."""
    message = messages.ModelInferRequest(model_name="perceptron")
    tensor = message.inputs.add(name="features", datatype="FP32", shape=[len(rows), 4])
    tensor.contents.fp32_contents.extend(value for row in rows for value in row)
    return message


def steps_request(steps: int) -> dict[str, Any]:
    """A REST inference of the slow model."""
    return {"inputs": [{"name": "steps", "datatype": "INT64", "shape": [1], "data": [steps]}]}


def steps_message(steps: int) -> messages.ModelInferRequest:
    """A gRPC inference of the slow model."""
    message = messages.ModelInferRequest(model_name="repeated_product")
    message.inputs.add(name="steps", datatype="INT64", shape=[1]).contents.int64_contents.append(steps)
    return message
