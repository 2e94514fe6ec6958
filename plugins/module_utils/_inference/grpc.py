# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Open Inference Protocol v2 over gRPC, with the standard library alone.

Fields that a client does not need are left out of the messages; a reader skips them.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference import hpack, protobuf
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    Access,
    Client,
    ModelMetadata,
    PreparedRequest,
    RawResponse,
    ServerMetadata,
    Status,
    TensorMetadata,
    model_subject,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.http2 import (
    Answer,
    Http2Connection,
    ProtocolError,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.sockets import open_socket, tls_context
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

SERVICE = "inference.GRPCInferenceService"
INFER = f"/{SERVICE}/ModelInfer"
# By number, as the specification of gRPC has them.
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# What an answer without a status means, by its status of HTTP.
HTTP_CODES = {
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}

# As the module protobuf reads it.
MESSAGES: protobuf.Table = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "string*")},
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "TensorMetadata*"),
        "outputs": (5, "TensorMetadata*"),
        "properties": (6, "Property*"),
    },
    "Property": {"key": (1, "string"), "value": (2, "string")},
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "inputs": (5, "InferInputTensor*"),
        "outputs": (6, "InferRequestedOutputTensor*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "InferInputTensor": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "InferRequestedOutputTensor": {"name": (1, "string")},
    "ModelInferResponse": {
        "outputs": (5, "InferOutputTensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "contents": (5, "InferTensorContents"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
}

# FP16 has no typed contents: it travels in raw contents only.
TYPED_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcClient(Client):
    """A client over one HTTP/2 connection: TCP in clear, TCP with TLS, or a unix socket.

    Raises
    ------
    FleetError
        A PEM file cannot be read.
    """

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._access = access
        self._tls = tls_context(access) if access.tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])
        self._connection: Http2Connection | None = None
        self._headers: dict[str, bytes] = {}

    def live(self) -> Status:
        return _status(self._call("ServerLive", "the server's health"), "live")

    def ready(self) -> Status:
        return _status(self._call("ServerReady", "the server's health"), "ready")

    def server_metadata(self) -> ServerMetadata:
        answer = self._call("ServerMetadata", "the server's metadata")
        return ServerMetadata(answer["name"], answer["version"], tuple(answer["extensions"]))

    def model_ready(self, name: str, version: str = "") -> Status:
        try:
            answer = self._call("ModelReady", model_subject(name, version), name=name, version=version)
        except _NotFoundError as error:
            return Status(False, error.seen)
        return _status(answer, "ready")

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        answer = self._call("ModelMetadata", model_subject(name, version), name=name, version=version)
        return ModelMetadata(
            name=answer["name"],
            versions=tuple(answer["versions"]),
            platform=answer["platform"],
            inputs=_tensors_metadata(answer["inputs"]),
            outputs=_tensors_metadata(answer["outputs"]),
            provider=next((item["value"] for item in answer["properties"] if item["key"] == "provider"), ""),
        )

    def prepare(
        self, name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str] = (), *, binary: bool = True
    ) -> PreparedRequest:
        message = {
            "model_name": name,
            "model_version": version,
            "inputs": [{"name": item.name, "datatype": item.datatype, "shape": item.shape} for item in inputs],
            "outputs": [{"name": output} for output in outputs],
            "raw_input_contents": [tensor.raw for tensor in inputs],
        }
        body = protobuf.encode(MESSAGES, "ModelInferRequest", message)
        return PreparedRequest(model_subject(name, version), INFER, {}, body)

    def send(self, request: PreparedRequest) -> RawResponse:
        return RawResponse(request.model, self._exchange(request.path, request.body, request.model), None)

    def decode(self, response: RawResponse) -> list[Tensor]:
        try:
            return decode_outputs(protobuf.decode(MESSAGES, "ModelInferResponse", response.body))
        except ValueError as error:
            raise self.misunderstood(response.model, str(error)) from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, method: str, subject: str, **fields: str) -> dict[str, Any]:
        request = protobuf.encode(MESSAGES, f"{method}Request", fields)
        body = self._exchange(f"/{SERVICE}/{method}", request, subject)
        try:
            return protobuf.decode(MESSAGES, f"{method}Response", body)
        except ValueError as error:
            raise self.misunderstood(subject, str(error)) from error

    def _exchange(self, path: str, message: bytes, subject: str) -> bytes:
        """Send one message and return the one that answers it."""
        deadline = time.monotonic() + self.timeout
        body = struct.pack(">BI", 0, len(message)) + message
        try:
            reused = self._connection is not None
            try:
                answer = self._request(path, body, deadline)
            except ConnectionError:
                # A server may close an idle connection just when the next request is sent.
                if not reused:
                    raise
                self.close()
                answer = self._request(path, body, deadline)
        except OSError as error:
            self.close()
            raise self.unconnected(error) from error
        except ProtocolError as error:
            self.close()
            raise self.misunderstood(subject, str(error)) from error
        return self._message(answer, subject)

    def _request(self, path: str, body: bytes, deadline: float) -> Answer:
        if self._connection is None:
            self._connection = Http2Connection(open_socket(self._access, self._tls))
        answer = self._connection.request(self._block(path), body, deadline)
        if not self._connection.usable:
            self.close()
        return answer

    def _block(self, path: str) -> bytes:
        """Return the headers of requests for a path, in which nothing changes from one to the next."""
        if path not in self._headers:
            access = self._access
            headers = [
                (":method", "POST"),
                (":scheme", "https" if access.tls else "http"),
                (":path", path),
                (":authority", access.authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                # Eight digits at most.
                ("grpc-timeout", f"{min(int(self.timeout * 1000) + 1, 99_999_999)}m"),
            ]
            if access.bearer_token is not None:
                headers.append(("authorization", f"Bearer {access.bearer_token}"))
            self._headers[path] = hpack.encode(headers)
        return self._headers[path]

    def _message(self, answer: Answer, subject: str) -> bytes:
        """Return the message of an answer; raise the error that it is instead."""
        said = answer.headers if "grpc-status" in answer.headers else answer.trailers
        number = said.get("grpc-status", "")
        if number == "0":
            size = int.from_bytes(answer.body[1:5], "big")
            if answer.body[:1] != b"\x00" or len(answer.body) != 5 + size:
                raise self.misunderstood(subject, f"{len(answer.body)} bytes that are not one uncompressed message")
            return bytes(memoryview(answer.body)[5:])
        status = answer.headers.get(":status", "")
        if number:
            code = CODES[int(number)] if number.isdecimal() and int(number) < len(CODES) else "UNKNOWN"
            words = unquote(said.get("grpc-message", ""))
        elif answer.reset is not None:
            code, words = "INTERNAL", f"the server gave up with error {answer.reset} of HTTP/2"
        elif status != "200":
            code, words = HTTP_CODES.get(status, "UNKNOWN"), f"HTTP {status}"
        else:
            raise self.misunderstood(subject, "an answer without a status of gRPC")
        raise self._error(subject, code, f"gRPC {code}: {words}")

    def _error(self, subject: str, code: str, seen: str) -> FleetError:
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return self.denied(seen)
        if code == "UNAVAILABLE":
            return self.unreachable(seen)
        if code == "DEADLINE_EXCEEDED":
            return self.slow(seen)
        if code == "UNIMPLEMENTED":
            return self.misunderstood(subject, seen)
        refusal = self.refused(subject, seen)
        if code == "NOT_FOUND":
            return _NotFoundError(refusal.what, where=refusal.where, seen=refusal.seen, remedy=refusal.remedy)
        return refusal


class _NotFoundError(FleetError):
    """The server does not know the model."""


def decode_outputs(answer: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of a ModelInferResponse, whose contents are raw or typed.

    Raises
    ------
    ValueError
        Contents are missing or do not fit the shape.
    """
    raw, outputs = answer["raw_output_contents"], answer["outputs"]
    if raw and len(raw) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs with {len(raw)} raw contents")
    tensors = []
    for index, output in enumerate(outputs):
        name, datatype, shape = output["name"], output["datatype"], tuple(output["shape"])
        if raw:
            tensors.append(Tensor(name, datatype, shape, raw[index]))
        else:
            values = (output["contents"] or {}).get(TYPED_CONTENTS.get(datatype, ""), ())
            tensors.append(Tensor.from_values(name, datatype, shape, values))
    return tensors


def _status(answer: Mapping[str, Any], field: str) -> Status:
    ok = bool(answer[field])
    return Status(ok, f"gRPC {field}: {str(ok).lower()}")


def _tensors_metadata(items: Any) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(item["name"], item["datatype"], tuple(item["shape"])) for item in items)
