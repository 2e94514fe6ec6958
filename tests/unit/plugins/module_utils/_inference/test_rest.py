# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The REST client against scripted answers: what other servers send, and what broken ones do."""

from __future__ import annotations

import contextlib
import json
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

X = Tensor.from_values("x", "FP32", [2], [1.0, 2.0])


def http(status: int, body: Any, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status} Reason", f"Content-Length: {len(content)}", *headers, "", "")
    return "\r\n".join(lines).encode() + content


class ScriptedServer(socketserver.ThreadingUnixStreamServer):
    """Answers the requests that come with `answers`, in turn; an empty answer closes the connection."""

    daemon_threads = True

    def __init__(self, path: Path, answers: list[bytes]) -> None:
        self.answers = answers
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        super().__init__(str(path), ScriptedHandler)


class ScriptedHandler(socketserver.StreamRequestHandler):
    server: ScriptedServer

    def handle(self) -> None:
        self.server.connections += 1
        while line := self.rfile.readline().decode().strip():
            headers = {}
            while header := self.rfile.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            self.server.requests.append((line, headers, body))
            if not self.server.answers or not (answer := self.server.answers.pop(0)):
                return
            self.wfile.write(answer)


Serve = Callable[..., tuple[ScriptedServer, str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a scripted server; return it with its endpoint."""
    with contextlib.ExitStack() as stack:

        def start(*answers: bytes) -> tuple[ScriptedServer, str]:
            path = tmp_path / "rest.sock"
            server = stack.enter_context(ScriptedServer(path, list(answers)))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            return server, f"http+unix://{path}"

        yield start


def test_binary_request_is_that_of_the_extension(serve: Serve) -> None:
    server, endpoint = serve(http(200, {"outputs": []}))
    with connect(endpoint, bearer_token="token") as client:
        client.infer("a model", "1.0.0", [X], ["y"])
    line, headers, body = server.requests[0]
    assert line == "POST /v2/models/a%20model/versions/1.0.0/infer HTTP/1.1"
    assert headers["authorization"] == "Bearer token"
    size = int(headers["inference-header-content-length"])
    document = json.loads(body[:size])
    assert document["inputs"] == [
        {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    ]
    assert document["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert body[size:] == struct.pack("<2f", 1.0, 2.0)


def test_json_request_has_no_binary_part(serve: Serve) -> None:
    server, endpoint = serve(http(200, {"outputs": []}))
    with connect(endpoint) as client:
        client.infer("m", "", [X], binary=False)
    line, headers, body = server.requests[0]
    assert line == "POST /v2/models/m/infer HTTP/1.1"
    assert "inference-header-content-length" not in headers
    assert json.loads(body) == {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]}]}


def test_answer_may_mix_json_and_binary_outputs(serve: Serve) -> None:
    header = json.dumps(
        {
            "outputs": [
                {"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
                {"name": "b", "datatype": "INT64", "shape": [1, 2], "data": [[5, 6]]},
                {"name": "c", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
            ]
        }
    ).encode()
    body = header + b"\x02\x00\x00\x00hi" + b"\x00\x3c"
    _, endpoint = serve(http(200, body, f"Inference-Header-Content-Length: {len(header)}"))
    with connect(endpoint) as client:
        assert [tensor.values() for tensor in client.infer("m", "", [X])] == [[b"hi"], [5, 6], [1.0]]


def test_one_connection_serves_many_requests(serve: Serve) -> None:
    server, endpoint = serve(*[http(200, {"outputs": []})] * 5)
    with connect(endpoint) as client:
        request = client.prepare("m", "", [X])
        for _ in range(5):
            client.send(request)
    assert (server.connections, len(server.requests)) == (1, 5)


def test_connection_that_the_server_closed_is_opened_again(serve: Serve) -> None:
    server, endpoint = serve(http(200, b""), b"", http(200, b""))
    with connect(endpoint) as client:
        assert client.live()
        assert client.live()
    assert server.connections == 2


def test_first_connection_that_breaks_is_an_error(serve: Serve) -> None:
    server, endpoint = serve(b"")
    with connect(endpoint) as client, pytest.raises(UnreachableError):
        client.live()
    assert server.connections == 1


def test_no_answer_in_time_is_an_error(serve: Serve) -> None:
    _, endpoint = serve(b"HTTP/1.1 200 OK\r\n")
    with connect(endpoint, timeout=0.1) as client, pytest.raises(UnreachableError, match="timed out"):
        client.live()


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (http(200, b""), True),
        (http(200, {"ready": True}), True),
        (http(200, {"ready": False}), False),
        (http(400, {"error": "loading"}), False),
        (http(404, b""), False),
        (http(503, b"not yet"), False),
    ],
)
def test_readiness_as_different_servers_say_it(serve: Serve, answer: bytes, ok: bool) -> None:
    _, endpoint = serve(answer)
    with connect(endpoint) as client:
        assert bool(client.model_ready("m")) is ok


def test_error_of_the_server_is_quoted_on_one_line_and_shortened(serve: Serve) -> None:
    _, endpoint = serve(http(400, {"error": "first line\nsecond line. " + "long " * 1000}))
    with connect(endpoint) as client, pytest.raises(FleetError) as failure:
        client.infer("m", "2.0.0", [X])
    assert "model 'm' version 2.0.0" in failure.value.what
    assert failure.value.where == endpoint
    assert failure.value.seen.startswith("HTTP 400 first line second line. long long")
    assert len(failure.value.seen) < 400


def test_refused_credentials_are_an_error_of_their_own(serve: Serve) -> None:
    _, endpoint = serve(http(401, {"error": "no"}), http(403, b""))
    with connect(endpoint, bearer_token="correct-horse") as client:
        with pytest.raises(FleetError, match="refused the credentials") as failure:
            client.ready()
        assert "correct-horse" not in str(failure.value)
        with pytest.raises(FleetError, match="refused the credentials"):
            client.infer("m", "", [X])


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"outputs": 7}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": "2", "parameters": {"binary_data_size": 8}}]}',
    ],
)
def test_answer_that_is_not_of_the_protocol(serve: Serve, body: bytes) -> None:
    _, endpoint = serve(http(200, body))
    with connect(endpoint) as client, pytest.raises(FleetError, match="does not follow the Open Inference Protocol"):
        client.infer("m", "", [X])


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"name": "m", "inputs": [7], "outputs": []}'])
def test_metadata_that_is_not_of_the_protocol(serve: Serve, body: bytes) -> None:
    _, endpoint = serve(http(200, body))
    with connect(endpoint) as client, pytest.raises(FleetError, match="does not follow the Open Inference Protocol"):
        client.model_metadata("m")


def test_server_that_does_not_speak_http(serve: Serve) -> None:
    _, endpoint = serve(b"\x00\x00\x06\x04\x00\x00\n")
    with connect(endpoint) as client, pytest.raises(FleetError, match="does not follow") as failure:
        client.live()
    assert failure.value.where == endpoint


def test_missing_socket_is_unreachable(tmp_path: Path) -> None:
    with (
        connect(f"http+unix://{tmp_path}/none.sock") as client,
        pytest.raises(UnreachableError, match="No such file"),
    ):
        client.live()
