# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC messages: typed and raw contents in, raw contents out.

Specification: section "GRPC", messages of open_inference_grpc.proto.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from edgeml_runtime.codecs import large_protobuf
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.codecs.large_protobuf import Contents, read_contents, varint
from edgeml_runtime.codecs.request import (
    check_complete,
    check_outputs,
    check_shape,
    check_strings,
    check_tensor_count,
    input_spec,
    read_parameters,
)
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.inference import InferenceRequest, Signature
from edgeml_runtime.tensors import Array, from_raw, from_repeated, to_raw

# The field of typed contents by datatype. FP16 has none: it goes raw.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


RawContents = Sequence[bytes | memoryview]
#: The message, its raw contents, and the typed contents that are not in it, by input.
Inference = tuple[messages.ModelInferRequest, RawContents, Sequence[Contents]]

#: Bytes of a message from which on its raw contents are not copied.
LARGE = 64 * 1024
# Bytes of raw contents that take longer than some milliseconds to copy.
_LONG = 16 << 20
# Of a message of another kind.
_MOST_BYTES = 64 * 1024
_MOST_FIELDS = 256
_WITH_LENGTH = 2
_RAW_CONTENTS = 7 << 3 | _WITH_LENGTH
# Of a ModelInferResponse, and of a ModelStreamInferResponse.
_RAW_OUTPUT = bytes([messages.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _WITH_LENGTH])
_INFER_RESPONSE = bytes([messages.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | _WITH_LENGTH])
# Parts of answers that come again: models, outputs and their shapes.
_REMEMBERED = 1024

_AnyMessage = TypeVar("_AnyMessage", bound=Message)


def parse_message(kind: type[_AnyMessage], body: bytes | memoryview) -> _AnyMessage:
    """A message of that kind, other than of an inference. Raises RequestError (invalid, too large)."""
    if len(body) > _MOST_BYTES:
        raise RequestError(Failure.TOO_LARGE, f"a {kind.DESCRIPTOR.name} has at most {_MOST_BYTES} bytes")
    return _parse(kind, body)


def _parse(kind: type[_AnyMessage], body: bytes | memoryview) -> _AnyMessage:
    try:
        return kind.FromString(bytes(body))
    except DecodeError:
        raise invalid(f"the request is not a {kind.DESCRIPTOR.name}") from None


def parse_inference(body: bytes | memoryview, limits: Limits) -> Inference:
    """A ModelInferRequest, not yet checked. Raises RequestError (invalid, too large).

    Large contents stay where they are, and are missing in the message.
    """
    if len(body) >= LARGE:
        rest, raw, contents = large_protobuf.split(memoryview(body), limits)
        return _parse(messages.ModelInferRequest, rest), raw, contents
    message = _parse(messages.ModelInferRequest, body)
    return message, message.raw_input_contents, ()


def takes_long(model: Signature, inference: Inference) -> bool:
    """Whether it is not to be decoded on the event loop."""
    _, raw, contents = inference
    if not isinstance(raw, list):  # of a small message, which was not split
        return False
    if sum(len(typed) for typed in contents if typed is not None) > LARGE:
        return True
    size = sum(map(len, raw))
    if size < LARGE:
        return False
    return size >= _LONG or any(spec.datatype in ("BYTES", "BOOL") for spec in model.inputs.values())


def raw_contents_at(beginning: bytes | memoryview) -> int:
    """Where the first raw contents are in a ModelInferRequest that begins so; 0 when it is not known."""
    view = memoryview(beginning)
    for key, _start, content, end in _fields(view):
        if key == _RAW_CONTENTS or end > len(view):
            return content if key == _RAW_CONTENTS else 0
    return 0


def _fields(body: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Key, start, start of the content and end of each field of a message, as far as all of them have a length.

    See "Encoding" of the documentation of Protocol Buffers: all fields of a ModelInferRequest have one.
    """
    position = 0
    for _ in range(_MOST_FIELDS):
        start = position
        if position >= len(body):
            return
        key = body[position]
        if key & 7 != _WITH_LENGTH or key > 127:
            return
        length = shift = 0
        while True:
            position += 1
            if position >= len(body) or shift > 28:
                return
            length |= (body[position] & 127) << shift
            if body[position] < 128:
                break
            shift += 7
        position += 1
        yield key, start, position, position + length
        position += length


def parse_model(body: bytes | memoryview) -> tuple[str, str]:
    """Name and version from a ModelReadyRequest or ModelMetadataRequest. Raises RequestError (invalid)."""
    message = parse_message(messages.ModelMetadataRequest, body)
    return message.name, message.version


def parse_repository_index(body: bytes | memoryview) -> bool:
    """Whether a RepositoryIndexRequest asks for ready models alone. Raises RequestError (invalid)."""
    return parse_message(messages.RepositoryIndexRequest, body).ready


def parse_repository_load(body: bytes | memoryview) -> tuple[str, list[str]]:
    """Name and the parameters' names from a RepositoryModelLoadRequest. Raises RequestError (invalid)."""
    message = parse_message(messages.RepositoryModelLoadRequest, body)
    return message.model_name, sorted(message.parameters)


def parse_repository_unload(body: bytes | memoryview) -> str:
    """The model's name from a RepositoryModelUnloadRequest. Raises RequestError (invalid)."""
    return parse_message(messages.RepositoryModelUnloadRequest, body).model_name


def request_id(body: bytes | memoryview, limits: Limits) -> str:
    """The id of a ModelInferRequest; empty when it is none."""
    try:
        return parse_inference(body, limits)[0].id
    except RequestError:
        return ""


def decode(model: Signature, inference: Inference, limits: Limits) -> InferenceRequest:
    """The checked request; see parse_inference. Raises RequestError (invalid, too large)."""
    message, raw, contents = inference
    check_tensor_count(len(message.inputs), limits)
    check_tensor_count(len(message.outputs), limits)
    if raw and len(raw) != len(message.inputs):
        raise invalid(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        spec = input_spec(model, tensor.name, inputs)
        shape = spec.check(tensor.datatype, list(tensor.shape))
        check_shape(spec, shape, limits)
        if not raw:
            field = CONTENTS.get(spec.datatype)
            if field is None:
                raise invalid(f"input '{spec.name}': {spec.datatype} must be in raw_input_contents")
            typed = contents[index] if contents else None
            if typed is not None:
                array = read_contents(spec, shape, typed)
            else:
                array = from_repeated(spec, shape, getattr(tensor.contents, field))
        elif tensor.HasField("contents"):
            raise invalid(f"input '{spec.name}' has contents beside raw_input_contents")
        else:
            array = from_raw(spec, shape, raw[index])
        check_strings(spec, array, limits)
        inputs[spec.name] = array
    check_complete(model, inputs)
    names = check_outputs(model, (output.name for output in message.outputs)) or list(model.outputs)
    request = InferenceRequest(message.id, inputs, names)
    if message.parameters:
        read_parameters(request, _parameters(message.parameters))
    return request


def encode(model: Signature, request: InferenceRequest, results: list[Array]) -> bytes:
    """A ModelInferResponse with raw_output_contents and the parameter ``model_digest``.

    It is put together of its fields, of which most are known: protobuf's objects would take most of the time.
    """
    parts: list[bytes | memoryview] = [_named(model.name, model.version)]
    if request.id:
        parts.append(messages.ModelInferResponse(id=request.id).SerializeToString())
    parts.append(_with_digest(model.digest))
    raw: list[bytes | memoryview] = []
    for name, array in zip(request.outputs, results, strict=True):
        parts.append(_described(name, model.outputs[name].datatype, array.shape))
        content = to_raw(array)
        raw += (_RAW_OUTPUT, varint(len(content)), content)
    return b"".join(parts + raw)


@lru_cache(_REMEMBERED)
def _named(model: str, version: str) -> bytes:
    return messages.ModelInferResponse(model_name=model, model_version=version).SerializeToString()


@lru_cache(_REMEMBERED)
def _with_digest(digest: str) -> bytes:
    response = messages.ModelInferResponse()
    response.parameters["model_digest"].string_param = digest
    return response.SerializeToString()


@lru_cache(_REMEMBERED)
def _described(output: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    response = messages.ModelInferResponse()
    response.outputs.add(name=output, datatype=datatype, shape=shape)
    return response.SerializeToString()


def stream_answer(answer: bytes) -> bytes:
    """A ModelStreamInferResponse that carries a ModelInferResponse."""
    return b"".join((_INFER_RESPONSE, varint(len(answer)), answer))


def stream_error(request_id: str, error: str) -> bytes:
    """A ModelStreamInferResponse that tells why the request of that id failed."""
    response = messages.ModelStreamInferResponse(error_message=error)
    response.infer_response.id = request_id
    return response.SerializeToString()


def repository_index(models: Iterable[tuple[str, str, str, str]]) -> bytes:
    """A RepositoryIndexResponse; each model is its name, version, state and reason."""
    response = messages.RepositoryIndexResponse()
    for name, version, state, reason in models:
        response.models.add(name=name, version=version, state=state, reason=reason)
    return response.SerializeToString()


def repository_load() -> bytes:
    """A RepositoryModelLoadResponse."""
    return messages.RepositoryModelLoadResponse().SerializeToString()


def repository_unload() -> bytes:
    """A RepositoryModelUnloadResponse."""
    return messages.RepositoryModelUnloadResponse().SerializeToString()


def server_live() -> bytes:
    """A ServerLiveResponse: who answers, lives."""
    return messages.ServerLiveResponse(live=True).SerializeToString()


def server_ready(ready: bool) -> bytes:
    """A ServerReadyResponse."""
    return messages.ServerReadyResponse(ready=ready).SerializeToString()


def model_ready(ready: bool) -> bytes:
    """A ModelReadyResponse."""
    return messages.ModelReadyResponse(ready=ready).SerializeToString()


def server_metadata(name: str, version: str) -> bytes:
    """A ServerMetadataResponse; the binary tensor data extension is one of REST."""
    return messages.ServerMetadataResponse(name=name, version=version).SerializeToString()


def model_metadata(model: Signature, versions: list[str]) -> bytes:
    """A ModelMetadataResponse; ``versions``: all that are served."""
    response = messages.ModelMetadataResponse(name=model.name, versions=versions, platform=model.platform)
    response.properties["provider"] = model.provider
    for specs, described in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
        for spec in specs.values():
            described.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response.SerializeToString()


def _parameters(given: Mapping[str, messages.InferParameter]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for name, value in given.items():
        if kind := value.WhichOneof("parameter_choice"):
            parameters[name] = getattr(value, kind)
    return parameters
