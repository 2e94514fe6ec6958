# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One request to a server, apart from any measurement: is the answer the engine's own?"""

import contextlib
import http.client
import socket
import time
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]

from serving_bench.cases import Case
from serving_bench.encodings import GRPC_METHOD, Encoding
from serving_bench.processes import ProcessTree
from serving_bench.servers import CANNED_BYTES, Ports, Server

MESSAGE_BYTES = 64 * 1024 * 1024


class WrongAnswerError(Exception):
    """The server refused the request or answered something else than the engine."""


def check(server: Server, case: Case, encoding: Encoding, ports: Ports, timeout: float = 10) -> int:
    """The size of the right answer in bytes, as h2load counts it.

    Raises WrongAnswerError, or OSError when nobody answers. Of a floor only the connection is checked.
    """
    request = server.request(case, encoding)
    if server.is_floor:
        with socket.create_connection(("127.0.0.1", ports.grpc if encoding.is_grpc else ports.rest), timeout):
            return CANNED_BYTES
    if encoding.is_grpc:
        headers, body = {}, _ask_grpc(request.body[5:], ports.grpc, timeout)
        size = len(body) + 5
    else:
        connection = http.client.HTTPConnection("127.0.0.1", ports.rest, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("POST", request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            body = response.read()
            headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status != 200:
            raise WrongAnswerError(f"status {response.status}: {body[:300]!r}")
        size = len(body)
    try:
        values = server.answer(case, encoding, headers, body)
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswerError(f"{type(error).__name__} {error} in {body[:300]!r}") from error
    if not case.is_answered_by(values):
        raise WrongAnswerError(f"answered {values[:8]}, the engine {case.output.ravel()[:8]}")
    return size


def _ask_grpc(message: bytes, port: int, timeout: float) -> bytes:
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call: Callable[..., bytes] = channel.unary_unary(GRPC_METHOD)
        try:
            return call(message, timeout=timeout)
        except grpc.RpcError as error:
            raise WrongAnswerError(f"{error.code().name}: {error.details()}") from error


def wait_for_answer(tree: ProcessTree, server: Server, case: Case, ports: Ports, seconds: float) -> None:
    """Ask until the answer is right. Raises TimeoutError after ``seconds``, RuntimeError when the server has ended."""
    deadline = time.monotonic() + seconds
    reason = "nobody listens"
    while time.monotonic() < deadline:
        if tree.exit_code() is not None:
            raise RuntimeError(f"{server.name} ended with exit code {tree.exit_code()}; its log is {tree.log}")
        try:
            check(server, case, server.encodings[0], ports, timeout=5)
            return
        except (OSError, http.client.HTTPException, WrongAnswerError) as error:
            reason = f"{type(error).__name__} {error}"
            time.sleep(0.005)
    raise TimeoutError(f"{server.name} gave no right answer in {seconds:.0f} s ({reason}); its log is {tree.log}")
