# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC messages: typed and raw contents in, raw contents out.

Specification: section "GRPC", messages of open_inference_grpc.proto.
"""

from google.protobuf.message import DecodeError

from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.codecs.request import check_complete, check_outputs, input_spec
from edgeml_runtime.errors import invalid
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


def parse_inference(body: bytes) -> messages.ModelInferRequest:
    """The message of a ModelInfer call, not yet checked. Raises RequestError (invalid)."""
    try:
        return messages.ModelInferRequest.FromString(body)
    except DecodeError:
        raise invalid("the request is no ModelInferRequest") from None


def parse_model(body: bytes) -> tuple[str, str]:
    """Name and version from a ModelReadyRequest or ModelMetadataRequest. Raises RequestError (invalid)."""
    try:
        message = messages.ModelMetadataRequest.FromString(body)
    except DecodeError:
        raise invalid("the request is no message with a model's name and version") from None
    return message.name, message.version


def decode(model: Signature, message: messages.ModelInferRequest) -> InferenceRequest:
    """The checked request. Raises RequestError (invalid)."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise invalid(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        spec = input_spec(model, tensor.name, inputs)
        shape = spec.check(tensor.datatype, list(tensor.shape))
        if not raw:
            field = CONTENTS.get(spec.datatype)
            if field is None:
                raise invalid(f"input '{spec.name}': {spec.datatype} must be in raw_input_contents")
            inputs[spec.name] = from_repeated(spec, shape, getattr(tensor.contents, field))
        elif tensor.HasField("contents"):
            raise invalid(f"input '{spec.name}' has contents beside raw_input_contents")
        else:
            inputs[spec.name] = from_raw(spec, shape, raw[index])
    check_complete(model, inputs)
    names = check_outputs(model, (output.name for output in message.outputs)) or list(model.outputs)
    return InferenceRequest(message.id, inputs, names)


def encode(model: Signature, request: InferenceRequest, results: list[Array]) -> bytes:
    """A ModelInferResponse with raw_output_contents and the parameter ``model_digest``."""
    response = messages.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    response.parameters["model_digest"].string_param = model.digest
    for name, array in zip(request.outputs, results, strict=True):
        response.outputs.add(name=name, datatype=model.outputs[name].datatype, shape=array.shape)
        response.raw_output_contents.append(bytes(to_raw(array)))
    return response.SerializeToString()


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


def model_metadata(model: Signature) -> bytes:
    """A ModelMetadataResponse."""
    response = messages.ModelMetadataResponse(name=model.name, versions=[model.version], platform=model.platform)
    for specs, described in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
        for spec in specs.values():
            described.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response.SerializeToString()
