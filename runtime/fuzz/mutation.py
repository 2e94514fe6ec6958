# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Almost valid requests, made from bytes: every byte string stands for one request.

A fuzzer that changes bytes thus changes which mutations are applied to a valid request.
"""

import copy
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import http2
import numpy as np
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.inference import Signature
from edgeml_runtime.tensors import Array, to_raw

T = TypeVar("T")

#: What a decoder must survive wherever a value is expected.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 65520.0, 3.5e38),
    *("", "\0", "true", "1", "\u00e9", "\U0001f600", "a" * 3000),
    *([], [[]], [[[[]]]], [0], [-1], [0, 2**62], [2**32, 2**32], [1] * 40, [[1], [1, 2]], [[1], 1], {}, {"a": {}}),
    *("BOOL", "BF16", "FP16", "FP32", "INT64", "UINT8", "BYTES"),
]

KEYS = [
    *("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data", "contents"),
    *("binary_data", "binary_data_size", "binary_data_output", "timeout", "priority"),
    *("sequence_id", "sequence_start", "sequence_end"),
]


class Choices:
    """Decisions read from bytes; when they are used up, every decision is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def below(self, count: int) -> int:
        """A number from 0 to count - 1; count is at most 65536."""
        width = 1 if count <= 256 else 2
        taken = self._data[self._position : self._position + width]
        self._position += width
        return int.from_bytes(taken, "little") % count

    def of(self, options: list[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def rarely(self) -> bool:
        """True for one byte in eight, and not when the bytes are used up."""
        return self.below(8) == 7

    def bytes(self, count: int) -> bytes:
        """At most ``count`` bytes as they are."""
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken


def tensors(model: Signature, choices: Choices) -> dict[str, Array]:
    """A fitting array for every input of a model."""
    arrays: dict[str, Array] = {}
    for spec in model.inputs.values():
        shape = tuple(choices.below(4) if size == -1 else size for size in spec.shape)
        array = spec.zeros(shape) if shape else spec.zeros()
        if spec.datatype == "BYTES":
            array.fill("text " * choices.below(3))
        else:
            array.fill(choices.below(2))
        arrays[spec.name] = array
    return arrays


def json_request(model: Signature, choices: Choices) -> tuple[bytes, int | None]:
    """A REST body and the length of its JSON part, None for JSON alone."""
    inputs, raw = [], []
    for name, array in tensors(model, choices).items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": model.inputs[name].datatype,
            "shape": list(array.shape),
        }
        if choices.below(2):
            raw.append(bytes(to_raw(array)))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = array.tolist() if array.ndim and choices.below(2) else array.reshape(-1).tolist()
        inputs.append(tensor)
    document: Any = {"id": "1", "inputs": inputs}
    if choices.below(2):
        document["outputs"] = [{"name": name} for name in model.outputs if not choices.rarely()]
    for _ in range(choices.below(4)):
        document = _mutated(document, choices)
    separators = choices.of([(",", ":"), (", ", ": "), (" ,\n", "\t:")])
    text = json.dumps(document, separators=separators, ensure_ascii=bool(choices.below(2)))
    head = text.replace("Infinity", "1e999").encode() if choices.rarely() else text.encode()
    if choices.rarely():
        head = damaged(head, choices)
    tail = b"".join(raw)
    if choices.rarely():
        tail = damaged(tail, choices)
    length = len(head) + (choices.below(9) - 4 if choices.rarely() else 0)
    return head + tail, None if not raw and choices.below(2) else max(0, length)


def protobuf_request(model: Signature, choices: Choices) -> bytes:
    """A serialised ModelInferRequest."""
    message = messages.ModelInferRequest(model_name=model.name, id="1")
    is_raw = choices.below(2)
    for name, array in tensors(model, choices).items():
        tensor = message.inputs.add(name=name, datatype=model.inputs[name].datatype, shape=array.shape)
        if is_raw or array.dtype == np.float16:
            message.raw_input_contents.append(bytes(to_raw(array)))
        else:
            values = [element.encode() for element in array.flat] if array.dtype == object else array.reshape(-1)
            getattr(tensor.contents, _FIELDS[array.dtype.kind, array.dtype.itemsize]).extend(values)
    for _ in range(choices.below(4)):
        choices.of(_PROTOBUF_MUTATIONS)(message, choices)
    body = message.SerializeToString()
    return damaged(body, choices) if choices.rarely() else body


def compressed(body: bytes, choices: Choices) -> tuple[bytes, str, bool]:
    """A body in gzip, zlib or raw deflate, its content coding, and whether it can be decompressed to the body.

    It may be damaged, doubled, of another coding than told, or expand enormously.
    """
    coding, window = choices.of([("gzip", 31), ("deflate", 15), ("deflate", -15), ("gzip", 15)])
    is_whole = window in (31, 15) and (coding == "gzip") == (window == 31)
    if choices.rarely():
        body += b" " * (1 << choices.below(22))
        is_whole = False
    compressor = zlib.compressobj(choices.below(10), zlib.DEFLATED, window)
    packed = compressor.compress(body) + compressor.flush()
    if choices.rarely():
        packed += packed
        is_whole = False
    if choices.rarely():
        packed = damaged(packed, choices)
        is_whole = False
    return packed, coding, is_whole


def http_request(path: str, body: bytes, json_length: int | None, choices: Choices) -> bytes:
    """An HTTP/1.1 request with that body, framed by length or in chunks."""
    headers = ["Host: localhost", *choices.of([[], ["Connection: close"], ["Connection: keep-alive"]])]
    if json_length is not None:
        headers.append(f"Inference-Header-Content-Length: {json_length}")
    if choices.rarely():
        body, coding, _ = compressed(body, choices)
        headers.append(f"Content-Encoding: {coding}")
    if choices.below(4) == 3:
        headers.append("Transfer-Encoding: chunked")
        size = 1 + choices.below(4096)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        length = len(body) + (choices.below(9) - 4 if choices.rarely() else 0)
        headers.append(f"Content-Length: {length}")
    if choices.rarely():
        headers.append(choices.of(_HEADERS))
    method = choices.of(["POST", "POST", "POST", "GET", "PUT", "HEAD", "OPTIONS", "PRI", "x"])
    version = choices.of(["1.1", "1.1", "1.1", "1.0", "2.0", "0.9"])
    head = "\r\n".join((f"{method} {path} HTTP/{version}", *headers, "", "")).encode("latin-1")
    whole = head + body
    return damaged(whole, choices) if choices.rarely() else whole


def http2_frames(message: bytes, choices: Choices) -> bytes:
    """Frames of HTTP/2: a gRPC call with that message, or something beside it."""
    number = 1 + 2 * choices.below(8)
    match choices.below(12):
        case 8:
            kind = choices.of([http2.PING, http2.SETTINGS, http2.RST_STREAM, 2, 5, 7, 8, http2.CONTINUATION, 99])
            payload = choices.bytes(choices.of([0, 4, 5, 6, 8, 12, 100]))
            return http2.frame(kind, choices.below(256), choices.of([0, number, 2, 2**31 - 1]), payload)
        case 9:
            settings = (choices.below(10), choices.of([0, 1, 65535, 2**14, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            return http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", *settings))
        case 10:
            increment = choices.of([0, 1, 1000, 2**31 - 1, 2**31])
            return http2.frame(8, 0, choices.of([0, number]), struct.pack(">I", increment))
        case 11:
            return http2.frame(http2.RST_STREAM, 0, number, bytes(4))
    methods = ["ModelInfer", "ModelInfer", "ModelStreamInfer", "ServerLive", "ModelReady", "ModelMetadata", "Other"]
    headers = [http2.header("grpc-encoding", choices.of([b"gzip", b"identity", b"deflate", b"x"]))]
    if choices.rarely():
        headers.append(
            choices.of([http2.header("grpc-timeout", b"1S"), http2.header("a", b"b" * 5000), b"\x40\x01a\x01b"])
        )
    is_compressed = choices.rarely()
    if is_compressed:
        message, _, _ = compressed(message, choices)
    body = http2.message(message, is_compressed) * choices.of([1, 1, 1, 0, 2, 20])
    if choices.rarely():
        body = damaged(body, choices)
    path = "/inference.GRPCInferenceService/" + choices.of(methods)
    frames = http2.call(number, path, body[:16384], choices.of([http2.END_STREAM, http2.END_STREAM, 0]), *headers)
    return damaged(frames, choices) if choices.rarely() else frames


_HEADERS = [
    "Expect: 100-continue",
    "Expect: something",
    "Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: chunked",
    "Content-Encoding: br",
    "Content-Encoding: gzip, gzip",
    "Accept-Encoding: gzip",
    "Accept-Encoding: deflate;q=0, *",
    "Inference-Header-Content-Length: -5",
    "Inference-Header-Content-Length: \xb2",
    "Authorization: Bearer \xff",
    "A: " + "b" * 5000,
    "\r\n".join(f"h{index}: 1" for index in range(300)),
    " folded: line",
    "no colon",
    ": no name",
]

_FIELDS = {
    ("b", 1): "bool_contents",
    ("i", 1): "int_contents",
    ("i", 2): "int_contents",
    ("i", 4): "int_contents",
    ("i", 8): "int64_contents",
    ("u", 1): "uint_contents",
    ("u", 2): "uint_contents",
    ("u", 4): "uint_contents",
    ("u", 8): "uint64_contents",
    ("f", 4): "fp32_contents",
    ("f", 8): "fp64_contents",
    ("O", 8): "bytes_contents",
}


def _mutated(document: Any, choices: Choices) -> Any:
    """The document with one node replaced, removed, added or repeated."""
    if choices.rarely():
        return copy.deepcopy(choices.of(VALUES))
    parent: Any = None
    key: Any = None
    node = document
    while isinstance(node, dict | list) and node and (parent is None or choices.below(4)):
        parent = node
        key = choices.of(list(node)) if isinstance(node, dict) else choices.below(min(len(node), 65536))
        node = node[key]
    if parent is None:
        return copy.deepcopy(choices.of(VALUES))
    match choices.below(5):
        case 0 | 1:
            parent[key] = copy.deepcopy(choices.of(VALUES))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, list):
            parent.append(copy.deepcopy(node))
        case 3:
            parent[choices.of(KEYS)] = copy.deepcopy(node)
        case _ if isinstance(parent, dict):
            parent[choices.of(KEYS)] = copy.deepcopy(choices.of(VALUES))
        case _:
            parent[key] = [copy.deepcopy(node) for _ in range(choices.below(30))]
    return document


def damaged(data: bytes, choices: Choices) -> bytes:
    """Bytes with a part cut out, repeated, overwritten or moved."""
    start = choices.below(min(len(data), 65535) + 1)
    end = min(len(data), start + choices.below(64))
    match choices.below(5):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + data[start:end] * choices.below(64) + data[end:]
        case 3:
            return data[:start] + choices.bytes(choices.below(16)) + data[end:]
        case _:
            return data[end:] + data[start:end] + data[:start]


def _change_shape(message: messages.ModelInferRequest, choices: Choices) -> None:
    if message.inputs:
        shape = choices.of(list(message.inputs)).shape
        dimension = choices.of([-1, 0, 1, 2, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
        if shape and choices.below(2):
            shape[choices.below(len(shape))] = dimension
        else:
            shape.extend([dimension] * choices.below(40))


def _change_datatype(message: messages.ModelInferRequest, choices: Choices) -> None:
    if message.inputs:
        values = ["", "BOOL", "BF16", "FP16", "FP32", "INT64", "UINT8", "BYTES", "fp32", "\0"]
        choices.of(list(message.inputs)).datatype = choices.of(values)


def _change_name(message: messages.ModelInferRequest, choices: Choices) -> None:
    if message.inputs:
        choices.of(list(message.inputs)).name = choices.of(["", "other", "a" * 3000, message.inputs[0].name])


def _change_contents(message: messages.ModelInferRequest, choices: Choices) -> None:
    if message.inputs:
        contents = choices.of(list(message.inputs)).contents
        match choices.below(7):
            case 0:
                contents.int_contents.extend([2**31 - 1, -(2**31)])
            case 1:
                contents.fp32_contents.extend([float("nan"), float("inf")])
            case 2:
                contents.bytes_contents.extend([b"\xff", b"", b"text"])
            case 3:
                contents.uint64_contents.append(2**64 - 1)
            case 4:
                contents.bool_contents.append(True)
            case 5:
                contents.Clear()
            case _:
                contents.fp64_contents.append(1e308)


def _change_raw(message: messages.ModelInferRequest, choices: Choices) -> None:
    raw = message.raw_input_contents
    if raw and choices.below(3):
        index = choices.below(len(raw))
        raw[index] = damaged(raw[index], choices)
    elif raw and choices.below(2):
        del raw[choices.below(len(raw))]
    else:
        raw.append(choices.bytes(choices.below(32)))


def _repeat(message: messages.ModelInferRequest, choices: Choices) -> None:
    if message.inputs:
        message.inputs.append(choices.of(list(message.inputs)))


def _ask_outputs(message: messages.ModelInferRequest, choices: Choices) -> None:
    message.outputs.add(name=choices.of(["", "other", "out_FP32", "scores"]))


def _add_parameter(message: messages.ModelInferRequest, choices: Choices) -> None:
    parameter = message.parameters[choices.of([*KEYS, ""])]
    match choices.below(5):
        case 0:
            parameter.bool_param = True
        case 1:
            parameter.int64_param = choices.of([0, -1, 2**63 - 1, -(2**63)])
        case 2:
            parameter.string_param = choices.of(["", "1", "a" * 3000])
        case 3:
            parameter.double_param = choices.of([0.0, -1.0, float("nan"), float("inf"), 1e308])
        case _:
            parameter.Clear()


_PROTOBUF_MUTATIONS: list[Callable[[messages.ModelInferRequest, Choices], None]] = [
    _change_shape,
    _change_datatype,
    _change_name,
    _change_contents,
    _change_raw,
    _repeat,
    _ask_outputs,
    _add_parameter,
]
