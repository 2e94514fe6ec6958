# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Requests as bytes on the wire, one per way of carrying a tensor, and the answers back into arrays."""

import json
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages

from serving_bench.cases import Array, Case

GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_GRPC_FRAME = struct.Struct(">BI")  # not compressed, length of the message


class Encoding(StrEnum):
    """How a tensor travels."""

    JSON = "json"
    BINARY = "binary"
    GRPC_RAW = "grpc-raw"
    GRPC_TYPED = "grpc-typed"

    @property
    def is_grpc(self) -> bool:
        """Over HTTP/2 and protobuf; otherwise over HTTP/1.1."""
        return self in (Encoding.GRPC_RAW, Encoding.GRPC_TYPED)


@dataclass(frozen=True)
class Request:
    """One HTTP POST: path, headers and body, as h2load sends it (gRPC with its frame)."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def protocol_request(case: Case, encoding: Encoding) -> Request:
    """The case as a request of the Open Inference Protocol."""
    path = f"/v2/models/{case.model}/infer"
    tensor: dict[str, Any] = {"name": case.input_name, "datatype": case.datatype, "shape": list(case.input.shape)}
    if encoding is Encoding.JSON:
        tensor["data"] = plain_values(case.input.ravel())
        return Request(path, (("content-type", "application/json"),), _json({"inputs": [tensor]}))
    if encoding is Encoding.BINARY:
        content = case.input.tobytes()
        tensor["parameters"] = {"binary_data_size": len(content)}
        header = _json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = (
            ("content-type", "application/octet-stream"),
            ("inference-header-content-length", str(len(header))),
        )
        return Request(path, headers, header + content)
    body = frame(infer_message(case, raw=encoding is Encoding.GRPC_RAW).SerializeToString())
    return Request(GRPC_METHOD, (("content-type", "application/grpc"), ("te", "trailers")), body)


def infer_message(case: Case, *, raw: bool) -> messages.ModelInferRequest:
    """The case as protobuf, with raw or typed contents."""
    message = messages.ModelInferRequest(model_name=case.model)
    tensor = message.inputs.add(name=case.input_name, datatype=case.datatype, shape=case.input.shape)
    if raw:
        message.raw_input_contents.append(case.input.tobytes())
    elif case.datatype == "FP32":
        tensor.contents.fp32_contents.extend(case.input.ravel().tolist())
    else:
        tensor.contents.int_contents.extend(case.input.ravel().tolist())
    return message


def frame(message: bytes) -> bytes:
    """A gRPC message, not compressed, in its frame of 5 bytes and content."""
    return _GRPC_FRAME.pack(0, len(message)) + message


def protocol_answer(case: Case, encoding: Encoding, headers: dict[str, str], body: bytes) -> Array:
    """The flat values of the case's output in an answer. Header names are lower-case. Raises ValueError."""
    if encoding.is_grpc:
        return _grpc_answer(case, body)
    length = headers.get("inference-header-content-length")
    document = json.loads(body[: int(length)] if length else body)
    offset = int(length) if length else 0
    for tensor in document.get("outputs", []):
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if tensor["name"] == case.output_name:
            if size is None:
                return np.asarray(tensor["data"], dtype=case.output.dtype).ravel()
            return np.frombuffer(body[offset : offset + size], dtype=case.output.dtype)
        offset += size or 0
    raise ValueError(f"no output {case.output_name!r} in {body[:200]!r}")


def plain_values(values: Array) -> list[Any]:
    """Values as JSON carries them: the shortest decimals that give the same float32 back."""
    if values.dtype == np.float32:
        return [float(str(value)) for value in values]
    listed: list[Any] = values.tolist()
    return listed


def _grpc_answer(case: Case, message: bytes) -> Array:
    answer = messages.ModelInferResponse.FromString(message)
    for index, tensor in enumerate(answer.outputs):
        if tensor.name == case.output_name:
            if answer.raw_output_contents:
                return np.frombuffer(answer.raw_output_contents[index], dtype=case.output.dtype)
            return np.asarray(tensor.contents.fp32_contents, dtype=case.output.dtype)
    raise ValueError(f"no output {case.output_name!r} in the answer")


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
