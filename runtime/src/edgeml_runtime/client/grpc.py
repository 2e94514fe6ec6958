# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A client over gRPC: one channel of grpcio, over TCP, TLS or a unix socket. Tensors go raw."""

from collections.abc import Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message

from edgeml_runtime.client.protocol import (
    Access,
    IndexEntry,
    Inputs,
    ModelMetadata,
    Parameters,
    Refused,
    ServerMetadata,
    Target,
    Unreachable,
    tensor,
)
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.codecs.protobuf import CONTENTS
from edgeml_runtime.errors import ConfigurationError
from edgeml_runtime.tensors import Array, TensorSpec, to_raw

_SERVICE = "/inference.GRPCInferenceService/"
_PARAMETERS = {bool: "bool_param", int: "int64_param", str: "string_param"}
_NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class GrpcClient:
    """A protocol.Client, which says more of each method."""

    def __init__(self, target: Target, access: Access) -> None:
        self._timeout = access.timeout
        self._metadata = (("authorization", f"Bearer {access.token}"),) if access.token else ()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        host = f"[{target.host}]" if ":" in target.host else target.host
        address = f"unix:{target.path}" if target.path else f"{host}:{target.port}"
        if target.tls:
            self._channel = grpc.secure_channel(address, _credentials(access), options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")

    def live(self) -> bool:
        """Whether the server lives."""
        return bool(self._call("ServerLive", messages.ServerLiveRequest(), messages.ServerLiveResponse).live)

    def ready(self) -> bool:
        """Whether the server is ready."""
        return bool(self._call("ServerReady", messages.ServerReadyRequest(), messages.ServerReadyResponse).ready)

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself."""
        answer = self._call("ServerMetadata", messages.ServerMetadataRequest(), messages.ServerMetadataResponse)
        return ServerMetadata(answer.name, answer.version, tuple(answer.extensions))

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model is ready."""
        request = messages.ModelReadyRequest(name=name, version=version)
        return bool(self._call("ModelReady", request, messages.ModelReadyResponse).ready)

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """What the server says of a model."""
        request = messages.ModelMetadataRequest(name=name, version=version)
        answer = self._call("ModelMetadata", request, messages.ModelMetadataResponse)
        inputs, outputs = (
            [TensorSpec(described.name, described.datatype, tuple(described.shape)) for described in side]
            for side in (answer.inputs, answer.outputs)
        )
        return ModelMetadata(answer.name, tuple(answer.versions), answer.platform, inputs, outputs)

    def index(self) -> list[IndexEntry]:
        """All models of the server."""
        answer = self._call("RepositoryIndex", messages.RepositoryIndexRequest(), messages.RepositoryIndexResponse)
        return [IndexEntry(model.name, model.version, model.state, model.reason) for model in answer.models]

    def encode(self, name: str, version: str, inputs: Inputs, outputs: Sequence[str], parameters: Parameters) -> bytes:
        """A request, ready to be sent."""
        request = messages.ModelInferRequest(model_name=name, model_version=version)
        for key, value in parameters.items():
            setattr(request.parameters[key], _PARAMETERS[type(value)], value)
        for spec, array in inputs:
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            request.raw_input_contents.append(bytes(to_raw(array)))
        for output in outputs:
            request.outputs.add(name=output)
        return request.SerializeToString()

    def exchange(self, request: bytes) -> bytes:
        """Send a request and receive the whole answer."""
        try:
            answer: bytes = self._infer(request, metadata=self._metadata, timeout=self._timeout, wait_for_ready=False)
        except grpc.RpcError as error:
            raise _failure("ModelInfer", error) from None
        return answer

    def decode(self, answer: bytes) -> dict[str, Array]:
        """The output tensors of an answer, by name."""
        response = _parsed("ModelInfer", answer, messages.ModelInferResponse)
        outputs: dict[str, Array] = {}
        raw = response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise Refused(f"{len(raw)} raw_output_contents for {len(response.outputs)} outputs")
        for index, output in enumerate(response.outputs):
            where = (output.name, output.datatype, output.shape)
            if raw:
                outputs[output.name] = tensor(*where, raw=raw[index])
                continue
            values = list(getattr(output.contents, CONTENTS.get(output.datatype, ""), ()))
            if output.datatype == "BYTES":
                values = [value.decode(errors="replace") for value in values]
            outputs[output.name] = tensor(*where, values=values)
        return outputs

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: str, request: Message, response: type[Any]) -> Any:
        call = self._channel.unary_unary(_SERVICE + method, type(request).SerializeToString)
        try:
            answer = call(request, metadata=self._metadata, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(method, error) from None
        return _parsed(method, answer, response)


def _parsed(method: str, answer: bytes, response: type[Any]) -> Any:
    try:
        return response.FromString(answer)
    except DecodeError:
        raise Refused(f"{method}: the answer is no {response.__name__}") from None


def _failure(method: str, error: Any) -> Exception:
    code = error.code()
    message = f"{method}: {code.name} {error.details() or ''}"
    # Of a model, a server itself says UNAVAILABLE: it is not loaded.
    return Unreachable(message) if code in _NO_CONNECTION and not method.startswith("Model") else Refused(message)


def _credentials(access: Access) -> grpc.ChannelCredentials:
    files = {"root_certificates": access.ca, "private_key": access.key, "certificate_chain": access.certificate}
    try:
        return grpc.ssl_channel_credentials(**{name: file and file.read_bytes() for name, file in files.items()})
    except OSError as error:
        raise ConfigurationError("command line", "--ca, --cert, --key", str(error), "readable PEM files") from None
