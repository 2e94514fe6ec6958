# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""REST bodies: JSON, and the binary tensor data extension.

With the extension a body is a JSON part, whose length a header tells, followed by the raw bytes of
the tensors that carry "binary_data_size", in their order. Specification: "Inference" of the
HTTP/REST section, and the extension "binary_tensor_data".
"""

from collections.abc import Mapping
from typing import Any

import orjson

from edgeml_runtime.codecs.request import check_complete, check_outputs, input_spec, read_parameters
from edgeml_runtime.errors import invalid
from edgeml_runtime.inference import InferenceRequest, Signature
from edgeml_runtime.tensors import Array, TensorSpec, from_raw, from_values, to_raw, to_values


def decode(model: Signature, body: bytes | bytearray, json_length: int | None) -> tuple[InferenceRequest, set[str]]:
    """A request, and the names of the outputs to answer in binary.

    ``json_length``: bytes of the JSON part, None when the body is JSON alone.
    Raises RequestError (invalid).
    """
    if json_length is not None and json_length > len(body):
        raise invalid(f"the JSON part is said to have {json_length} bytes, the body has {len(body)}")
    try:
        document = orjson.loads(body if json_length is None else memoryview(body)[:json_length])
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is no JSON: {error}") from None
    if type(document) is not dict:
        raise invalid("the body must be a JSON object")
    request_id = document.get("id", "")
    if type(request_id) is not str:
        raise invalid("'id' must be a string")

    binary = memoryview(body)[len(body) if json_length is None else json_length :]
    inputs: dict[str, Array] = {}
    for tensor in _objects(document, "inputs"):
        spec = input_spec(model, tensor.get("name"), inputs)
        shape = spec.check(tensor.get("datatype"), tensor.get("shape"))
        size = _parameter(tensor, "binary_data_size", int)
        if size is None:
            inputs[spec.name] = from_values(spec, shape, tensor.get("data"))
            continue
        if "data" in tensor:
            raise invalid(f"input '{spec.name}' has both 'data' and 'binary_data_size'")
        if not 0 <= size <= len(binary):
            raise invalid(f"input '{spec.name}': binary_data_size {size}, {len(binary)} binary bytes are left")
        inputs[spec.name] = from_raw(spec, shape, binary[:size])
        binary = binary[size:]
    if len(binary):
        raise invalid(f"{len(binary)} binary bytes belong to no input")
    check_complete(model, inputs)

    binary_by_default = _parameter(document, "binary_data_output", bool) or False
    requested = _objects(document, "outputs") if document.get("outputs") else []
    request = InferenceRequest(request_id, inputs, list(model.outputs))
    if "parameters" in document:
        read_parameters(request, document["parameters"] or {})
    if not requested:
        return request, set(request.outputs) if binary_by_default else set()
    request.outputs = names = check_outputs(model, (output.get("name") for output in requested))
    in_binary = set()
    for name, output in zip(names, requested, strict=True):
        choice = _parameter(output, "binary_data", bool)
        if binary_by_default if choice is None else choice:
            in_binary.add(name)
    return request, in_binary


def encode(
    model: Signature, request: InferenceRequest, results: list[Array], in_binary: set[str]
) -> tuple[bytes, int | None]:
    """The body of an answer and, when it has binary tensors, the bytes of its JSON part."""
    head, raw = encode_parts(model, request, results, in_binary)
    return (b"".join((head, *raw)), len(head)) if in_binary else (head, None)


def encode_parts(
    model: Signature, request: InferenceRequest, results: list[Array], in_binary: set[str]
) -> tuple[bytes, list[bytes | memoryview]]:
    """The JSON part of an answer, and the bytes of its binary tensors.

    NaN and infinities, which JSON cannot carry, become null; in binary they are kept.
    """
    outputs: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for name, array in zip(request.outputs, results, strict=True):
        output: dict[str, Any] = {"name": name, "datatype": model.outputs[name].datatype, "shape": array.shape}
        if name in in_binary:
            raw.append(to_raw(array))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = to_values(array)
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), raw


def server_metadata(name: str, version: str) -> bytes:
    """Body of ``GET /v2``."""
    return orjson.dumps({"name": name, "version": version, "extensions": ["binary_tensor_data"]})


def model_metadata(model: Signature, versions: list[str]) -> bytes:
    """Body of ``GET /v2/models/NAME``."""
    return orjson.dumps(
        {
            "name": model.name,
            "versions": versions,
            "platform": model.platform,
            "inputs": _described(model.inputs),
            "outputs": _described(model.outputs),
        }
    )


def json_object(**values: object) -> bytes:
    """A small JSON body."""
    return orjson.dumps(values)


def _described(specs: Mapping[str, TensorSpec]) -> list[dict[str, object]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs.values()]


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    objects = document.get(key)
    if type(objects) is list and {dict}.issuperset(map(type, objects)):
        return objects
    raise invalid(f"'{key}' must be a list of objects")


def _parameter(owner: dict[str, Any], key: str, kind: type) -> Any:
    parameters = owner.get("parameters")
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise invalid("'parameters' must be an object")
    value = parameters.get(key)
    if value is not None and type(value) is not kind:
        raise invalid(f"parameter '{key}' must be {'an integer' if kind is int else 'true or false'}")
    return value
