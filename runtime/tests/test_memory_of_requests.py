# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""When a request is over, however it ended, nothing of it is left: Python's cycle collector has nothing to do.

A cycle (an exception that its own traceback's frame still names) keeps a request's tensors until the collector
happens to run, and that happens by the number of objects, not by their size.
"""

import gc
import gzip
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import http2
import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from engines import running_sum, scaled
from in_process import InProcess, census, cyclic_garbage, no_collector, resident_bytes, serving, settled
from python_models import VALUES, python_model

MIB = 1 << 20
CODE = """
    import time

    def infer(inputs):
        what = inputs["values"][0]
        if what == 1:
            raise ValueError("no ones")
        if what == 2:
            raise KeyError("two")
        if what == 3:
            time.sleep(0.2)
        if what == 4:
            return {"result": "not an array of numbers"}
        return {"result": inputs["values"]}
"""
REPEATED = 6
LARGE = 65_536  # elements: a request that goes to a buffer and to an engine thread
LIMITS = {"body_bytes": MIB, "buffered_bytes": 4 * MIB, "header_bytes": 4096, "connections": 64}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    root = tmp_path_factory.mktemp("models")
    models = [
        python_model(root, "code", CODE).config,
        python_model(root, "hasty", CODE, deadline_seconds=0.05).config,
        python_model(root, "apart", CODE, isolated=True).config,
        python_model(root, "alone", CODE, queue=0).config,
        scaled(root, 2.0, shape=("rows", 2)),
        scaled(root, 3.0, name="batched", shape=("rows", 2), batching={"max_size": 8}),
        running_sum(root),
    ]
    with serving(*models, limits=LIMITS) as running:
        gc.collect()
        gc.freeze()  # what is there already is counted no more, which makes counting fast
        yield running
        gc.unfreeze()


def values(first: float, count: int = 1) -> tuple[dict[str, Any], bytes]:
    array = np.zeros(count, np.float32)
    array[0] = first
    return {**VALUES, "shape": [count]}, array.tobytes()


def rows(first: float, count: int = 1, name: str = "x") -> tuple[dict[str, Any], bytes]:
    array = np.zeros((count, 2), np.float32)
    array[0, 0] = first
    return {"name": name, "datatype": "FP32", "shape": [count, 2]}, array.tobytes()


def rest_request(model: str, tensor: tuple[dict[str, Any], bytes], *lines: str, **more: Any) -> bytes:
    described, raw = tensor
    described = {**described, "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [described], **more}).encode()
    return post(f"/v2/models/{model}/infer", text + raw, f"Inference-Header-Content-Length: {len(text)}", *lines)


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *lines, "", ""))
    return head.encode() + body


def ask(server: InProcess, request: bytes) -> int:
    """The status of an answer, which is read to its end."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=240) as connection:
        with suppress(OSError):  # an early refusal
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    received = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    return int(received[9:12])


def leave(port: int, request: bytes, reset: bool = True) -> None:
    """Send, and go without reading."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=240)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.sendall(request)
    connection.close()


def grpc_message(model: str, tensor: tuple[dict[str, Any], bytes], **parameters: int) -> bytes:
    described, raw = tensor
    message = messages.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(**described)
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return http2.message(message.SerializeToString())


def frames(stream: int, method: str, body: bytes, *extra: bytes, window: int = 1 << 20, ends: bool = True) -> bytes:
    """A call as a client with a window of its own; ``ends``: the request is complete."""
    head, data = http2.call(stream, f"/inference.GRPCInferenceService/{method}", b"", 0, *extra), b""
    head = head[:-9]
    size = 16384
    for start in range(0, len(body) or 1, size):
        last = start + size >= len(body) and ends
        data += http2.frame(http2.DATA, http2.END_STREAM if last else 0, stream, body[start : start + size])
    return head + data


def greeting(window: int = 1 << 24) -> bytes:
    settings = http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 4, window))
    return http2.PREFACE + settings + http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">L", 1 << 24))


def call(server: InProcess, data: bytes) -> bytes:
    """All frames' payloads until the first stream ends."""
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=240) as connection:
        connection.sendall(greeting() + data)
        stream = connection.makefile("rb")
        seen = b""
        while True:
            kind, flags, number, payload = http2.read_frame(stream)
            seen += payload if kind == http2.HEADERS else b""
            if (number and flags & http2.END_STREAM and kind in (http2.DATA, http2.HEADERS)) or kind == 3:
                stream.close()
                return seen


Case = Callable[[InProcess], object]
NAN = float("nan")
BOMB = gzip.compress(bytes(2 * MIB), mtime=0)


def _rest(model: str, tensor: tuple[dict[str, Any], bytes], expected: int, *lines: str, **more: Any) -> Case:
    def case(server: InProcess) -> None:
        assert ask(server, rest_request(model, tensor, *lines, **more)) == expected

    return case


def _post(path: str, body: bytes, expected: int, *lines: str) -> Case:
    def case(server: InProcess) -> None:
        assert ask(server, post(path, body, *lines)) == expected

    return case


def _grpc(model: str, tensor: tuple[dict[str, Any], bytes], expected: int, *extra: bytes, **parameters: int) -> Case:
    def case(server: InProcess) -> None:
        seen = call(server, frames(1, "ModelInfer", grpc_message(model, tensor, **parameters), *extra))
        assert b"grpc-status" + bytes([len(str(expected))]) + str(expected).encode() in seen, seen

    return case


def _leave_rest(request: bytes, reset: bool = True) -> Case:
    return lambda server: leave(server.rest_port, request, reset)


def _leave_grpc(data: bytes, window: int = 1 << 24) -> Case:
    return lambda server: leave(server.grpc_port, greeting(window) + data)


RST = http2.frame(http2.RST_STREAM, 0, 1, struct.pack(">L", 8))
MISSING_GRPC = frames(1, "ModelInfer", grpc_message("scaled", rows(1, LARGE)), ends=False)[: -LARGE * 4]
STREAM = grpc_message("code", values(1)) + grpc_message("code", values(2)) + grpc_message("code", values(3))
CASES: dict[str, Case] = {
    "rest_ok": _rest("scaled", rows(1), 200),
    "rest_ok_large": _rest("scaled", rows(1, LARGE), 200),
    "rest_ok_compressed": _rest("scaled", rows(1, LARGE), 200, "Accept-Encoding: gzip"),
    "rest_bomb": _post("/v2/models/scaled/infer", BOMB, 413, "Content-Encoding: gzip"),
    "rest_bomb_of_two": _post("/v2/models/scaled/infer", BOMB + BOMB, 413, "Content-Encoding: gzip"),
    "rest_damaged_gzip": _post("/v2/models/scaled/infer", b"x" * 5000, 400, "Content-Encoding: gzip"),
    "rest_unknown_coding": _post("/v2/models/scaled/infer", b"x" * 5000, 400, "Content-Encoding: br"),
    "rest_not_json": _post("/v2/models/scaled/infer", b"[" * 100_000, 400),
    "rest_small_not_json": _post("/v2/models/scaled/infer", b"{", 400),
    "rest_too_large": _post("/v2/models/scaled/infer", bytes(MIB + 1), 413),
    "rest_no_model": _rest("none", values(0, LARGE), 404),
    "rest_no_path": _post("/v3", bytes(LARGE), 404),
    "rest_wrong_tensor": _rest("scaled", values(0, LARGE), 400),
    "rest_onnx_fails": _rest("scaled", rows(NAN), 400),
    "rest_onnx_fails_on_a_thread": _rest("scaled", rows(NAN, LARGE), 400),
    "rest_code_refuses": _rest("code", values(1, LARGE), 400),
    "rest_code_raises": _rest("code", values(2, LARGE), 500),
    "rest_code_gives_nonsense": _rest("code", values(4, LARGE), 500),
    "rest_isolated_raises": _rest("apart", values(2, LARGE), 500),
    "rest_isolated_refuses": _rest("apart", values(1, LARGE), 400),
    "rest_batch_fails": _rest("batched", rows(NAN, LARGE), 400),
    "rest_no_sequence": _rest("running_sum", rows(1), 400),
    "rest_sequence_fails": _rest(
        "running_sum", rows(NAN), 400, parameters={"sequence_id": 7, "sequence_start": True, "sequence_end": True}
    ),
    "rest_late": _rest("hasty", values(3, LARGE), 504),
    "rest_late_by_request": _rest("code", values(3, LARGE), 504, parameters={"timeout": 20_000}),
    "rest_load_fails": _post("/v2/repository/models/none/load", b"", 404),
    "rest_long_header": lambda server: ask(server, b"GET / HTTP/1.1\r\nx: " + b"a" * 5000 + b"\r\n\r\n"),
    "rest_not_http": lambda server: ask(server, b"\x16\x03\x01 hello\r\n\r\n"),
    "rest_leaves_in_head": _leave_rest(b"POST /v2/models/scaled/infer HTTP/1.1\r\nHost"),
    "rest_leaves_in_body": _leave_rest(rest_request("scaled", rows(1, LARGE))[:300_000]),
    "rest_leaves_in_small_body": _leave_rest(rest_request("scaled", rows(1))[:-3]),
    "rest_leaves_before_answer": _leave_rest(rest_request("code", values(3, LARGE))),
    "rest_leaves_without_reading": _leave_rest(rest_request("scaled", rows(1, LARGE)) * 3),
    "rest_ends_without_reading": _leave_rest(rest_request("scaled", rows(1, LARGE)), reset=False),
    "grpc_ok": _grpc("scaled", rows(1), 0),
    "grpc_ok_large": _grpc("scaled", rows(1, LARGE), 0),
    "grpc_no_model": _grpc("none", rows(1, LARGE), 5),
    "grpc_no_method": lambda server: call(server, frames(1, "Nothing", bytes(LARGE))),
    "grpc_no_message": lambda server: call(server, frames(1, "ModelInfer", b"")),
    "grpc_damaged": lambda server: call(server, frames(1, "ModelInfer", http2.message(b"\xff" * LARGE))),
    "grpc_bomb": lambda server: call(
        server, frames(1, "ModelInfer", http2.message(BOMB, compressed=True), http2.header("grpc-encoding", b"gzip"))
    ),
    "grpc_too_large": lambda server: call(server, frames(1, "ModelInfer", struct.pack(">BI", 0, 2 * MIB) + b"x")),
    "grpc_wrong_tensor": _grpc("scaled", values(1, LARGE), 3),
    "grpc_onnx_fails": _grpc("scaled", rows(NAN), 3),
    "grpc_onnx_fails_on_a_thread": _grpc("scaled", rows(NAN, LARGE), 3),
    "grpc_code_refuses": _grpc("code", values(1, LARGE), 3),
    "grpc_code_raises": _grpc("code", values(2, LARGE), 13),
    "grpc_isolated_raises": _grpc("apart", values(2, LARGE), 13),
    "grpc_late": _grpc("hasty", values(3, LARGE), 4),
    "grpc_late_by_client": _grpc("code", values(3, LARGE), 4, http2.header("grpc-timeout", b"20m")),
    "grpc_stream": lambda server: call(server, frames(1, "ModelStreamInfer", STREAM)),
    "grpc_stream_cancelled": _leave_grpc(frames(1, "ModelStreamInfer", STREAM, ends=False)),
    "grpc_leaves_in_message": _leave_grpc(MISSING_GRPC),
    "grpc_leaves_before_answer": _leave_grpc(frames(1, "ModelInfer", grpc_message("code", values(3, LARGE)))),
    "grpc_resets": _leave_grpc(frames(1, "ModelInfer", grpc_message("code", values(3, LARGE))) + RST),
    "grpc_leaves_without_window": _leave_grpc(frames(1, "ModelInfer", grpc_message("scaled", rows(1, LARGE))), 0),
    "grpc_stream_without_window": _leave_grpc(frames(1, "ModelStreamInfer", STREAM, ends=False), 0),
    "grpc_breaks_protocol": _leave_grpc(
        frames(1, "ModelInfer", grpc_message("code", values(3, LARGE))) + http2.frame(http2.DATA, 0, 99, b"x")
    ),
}


def is_idle(server: InProcess) -> bool:
    async def look() -> bool:
        return not any(model._scheduler.under_way for model in server.engine._loaded.values())

    connections = ("Connection", "Call", "Job", "Run", "InferenceRequest")
    return bool(server.run(look())) and not any(census()[kind] for kind in connections)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left(server: InProcess, name: str) -> None:
    case = CASES[name]
    for _ in range(2):
        case(server)  # what is made once and stays
    assert settled(lambda: is_idle(server)) or name
    cyclic_garbage()
    with no_collector():
        assert settled(lambda: is_idle(server))
        before = census()
        for _ in range(REPEATED):
            case(server)
        idle = settled(lambda: is_idle(server))
        after = census()
        garbage = cyclic_garbage()
    assert not garbage, garbage
    assert idle, after
    left = {kind: after[kind] - before[kind] for kind in after if after[kind] - before[kind] >= REPEATED}
    assert not left, left


@pytest.mark.parametrize(
    "name",
    [
        "rest_bomb",
        "rest_onnx_fails_on_a_thread",
        "rest_code_raises",
        "rest_leaves_without_reading",
        "grpc_bomb",
        "grpc_code_raises",
        "grpc_leaves_without_window",
    ],
)
def test_memory_is_flat(server: InProcess, name: str) -> None:
    """With bodies of half a MiB; each kept one would show."""
    case = CASES[name]
    with no_collector():
        for _ in range(20):
            case(server)
        assert settled(lambda: is_idle(server))
        before = resident_bytes()
        for _ in range(200):
            case(server)
        assert settled(lambda: is_idle(server))
        assert resident_bytes() < before + 24 * MIB
