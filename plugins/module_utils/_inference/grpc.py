# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Open Inference Protocol v2 over gRPC.

The messages are described here and built when needed, because generated code is bound to one version of protobuf: this
works from protobuf 3.21 and grpcio 1.51 (Debian 12) on. Fields that a client does not need are left out; protobuf skips
them when it reads.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
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
    unreadable,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

try:
    import grpc  # type: ignore[import-untyped]
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError
except ImportError as import_error:
    MISSING_LIBRARY: ImportError | None = import_error
else:
    MISSING_LIBRARY = None

SERVICE = "inference.GRPCInferenceService"
# gRPC has no status code for a certificate that is not accepted: words of grpcio 1.51 and of later ones.
UNTRUSTED = re.compile(r"certificate.verify.failed|hostname verification|not in peer certificate", re.IGNORECASE)
INFER = f"/{SERVICE}/ModelInfer"

# Message: field: (number, type); "*" after a type marks a repeated field. Types are scalars or messages of this table.
MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
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
    },
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
        grpcio or protobuf is not installed for the Python that runs this, or a PEM file cannot be read.
    """

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        if MISSING_LIBRARY is not None:
            raise FleetError(
                "gRPC endpoints need the Python libraries grpcio and protobuf where the module runs",
                where=access.endpoint,
                seen=str(MISSING_LIBRARY),
                remedy="install python3-grpcio and python3-protobuf, pip packages grpcio and protobuf, or use REST",
            )
        self._metadata = None if access.bearer_token is None else (("authorization", f"Bearer {access.bearer_token}"),)
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            # A server that starts is to be seen soon; the default grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            # Despite its name, how long one attempt to connect may take, TLS handshake included. Longer than the
            # caller waits, so that its own limit is the one that ends it.
            ("grpc.min_reconnect_backoff_ms", int(access.timeout * 1000) + 10_000),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        if access.server_name:
            options.append(("grpc.ssl_target_name_override", access.server_name))
        target = f"unix:{access.address}" if access.unix else access.address
        if access.tls:
            credentials = grpc.ssl_channel_credentials(
                _pem("ca_file", access.ca_file),
                _pem("client_key", access.client_key),
                _pem("client_certificate", access.client_certificate),
            )
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        # Bytes in, bytes out: encoding must not count as the server's time.
        self._infer = self._channel.unary_unary(INFER)

    def live(self) -> Status:
        return _status(self._call("ServerLive", "the server's health"), "live")

    def ready(self) -> Status:
        return _status(self._call("ServerReady", "the server's health"), "ready")

    def server_metadata(self) -> ServerMetadata:
        answer = self._call("ServerMetadata", "the server's metadata")
        return ServerMetadata(answer.name, answer.version, tuple(answer.extensions))

    def model_ready(self, name: str, version: str = "") -> Status:
        try:
            answer = self._call("ModelReady", model_subject(name, version), name=name, version=version)
        except _NotFoundError as error:
            return Status(False, error.seen)
        return _status(answer, "ready")

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        answer = self._call("ModelMetadata", model_subject(name, version), name=name, version=version)
        return ModelMetadata(
            name=answer.name,
            versions=tuple(answer.versions),
            platform=answer.platform,
            inputs=_tensors_metadata(answer.inputs),
            outputs=_tensors_metadata(answer.outputs),
        )

    def prepare(
        self, name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str] = (), *, binary: bool = True
    ) -> PreparedRequest:
        message = message_class("ModelInferRequest")(
            model_name=name,
            model_version=version,
            inputs=[{"name": item.name, "datatype": item.datatype, "shape": item.shape} for item in inputs],
            outputs=[{"name": output} for output in outputs],
            raw_input_contents=[tensor.raw for tensor in inputs],
        )
        return PreparedRequest(model_subject(name, version), INFER, {}, message.SerializeToString())

    def send(self, request: PreparedRequest) -> RawResponse:
        try:
            body = self._infer(request.body, timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._error(request.model, error) from error
        return RawResponse(request.model, body, None)

    def decode(self, response: RawResponse) -> list[Tensor]:
        try:
            return decode_outputs(message_class("ModelInferResponse").FromString(response.body))
        except (ValueError, DecodeError) as error:
            raise self.misunderstood(response.model, str(error)) from error

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, subject: str, **fields: str) -> Any:
        request = message_class(f"{method}Request")(**fields)
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            body = call(request.SerializeToString(), timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._error(subject, error) from error
        try:
            return message_class(f"{method}Response").FromString(body)
        except DecodeError as error:
            raise self.misunderstood(subject, str(error)) from error

    def _error(self, subject: str, error: Any) -> FleetError:
        code, seen = error.code(), f"gRPC {error.code().name}: {error.details()}"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return self.denied(seen)
        if code is grpc.StatusCode.UNAVAILABLE and UNTRUSTED.search(seen):
            return self.untrusted(seen)
        if code is grpc.StatusCode.UNAVAILABLE:
            return self.unreachable(seen)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.slow(seen)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return self.misunderstood(subject, seen)
        refusal = self.refused(subject, seen)
        if code is grpc.StatusCode.NOT_FOUND:
            return _NotFoundError(refusal.what, where=refusal.where, seen=refusal.seen, remedy=refusal.remedy)
        return refusal


class _NotFoundError(FleetError):
    """The server does not know the model."""


@functools.lru_cache(maxsize=None)
def message_class(name: str) -> Any:
    """Return the class of a message of `MESSAGES`."""
    descriptor = _pool().FindMessageTypeByName(f"inference.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    older: Any = message_factory.MessageFactory()  # protobuf 3.21
    return older.GetPrototype(descriptor)


def decode_outputs(answer: Any) -> list[Tensor]:
    """Return the tensors of a ModelInferResponse, whose contents are raw or typed.

    Raises
    ------
    ValueError
        Contents are missing or do not fit the shape.
    """
    raw = answer.raw_output_contents
    if raw and len(raw) != len(answer.outputs):
        raise ValueError(f"{len(answer.outputs)} outputs with {len(raw)} raw contents")
    tensors = []
    for index, output in enumerate(answer.outputs):
        shape = tuple(output.shape)
        if raw:
            tensors.append(Tensor(output.name, output.datatype, shape, raw[index]))
        else:
            contents = TYPED_CONTENTS.get(output.datatype)
            values = getattr(output.contents, contents) if contents else ()
            tensors.append(Tensor.from_values(output.name, output.datatype, shape, values))
    return tensors


@functools.lru_cache(maxsize=None)
def _pool() -> Any:
    """Return the descriptions of all messages, apart from the process-wide ones, which may know the same names."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    for message_name, fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            scalar = kind.rstrip("*")
            field = message.field.add(name=field_name, number=number)
            field.label = types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL
            if scalar in MESSAGES:
                field.type = types.TYPE_MESSAGE
                field.type_name = f".inference.{scalar}"
            else:
                field.type = types.Type.Value(f"TYPE_{scalar.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _status(answer: Any, field: str) -> Status:
    ok = bool(getattr(answer, field))
    return Status(ok, f"gRPC {field}: {str(ok).lower()}")


def _tensors_metadata(items: Any) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(item.name, item.datatype, tuple(item.shape)) for item in items)


def _pem(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(option, path, error) from error
