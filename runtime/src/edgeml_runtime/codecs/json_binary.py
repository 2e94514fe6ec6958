# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""REST bodies: JSON, and the binary tensor data extension.

With the extension a body is a JSON part, whose length a header tells, followed by the raw bytes of
the tensors that carry "binary_data_size", in their order. Specification: "Inference" of the
HTTP/REST section, and the extension "binary_tensor_data".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from edgeml_runtime.codecs import large_json, portions
from edgeml_runtime.codecs.large_json import Numbers
from edgeml_runtime.codecs.portions import Values, is_plain
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
from edgeml_runtime.errors import invalid
from edgeml_runtime.inference import InferenceRequest, Signature
from edgeml_runtime.tensors import Array, TensorSpec, from_raw, from_values, to_raw, to_values

# Of those that the protocol's specification and its clients know, the ones that REST has here.
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters", "schedule_policy", "sequence")

# Bytes of JSON from which on simdjson's buffers are faster than Python's lists.
_LARGE = 4 * 1024
# Bytes of JSON from which on it is read in portions: no step of that is long, and memory stays near that of the body.
_PORTIONED = 128 * 1024
# Elements that are written as JSON at once.
_STEP = 8 * 1024
# Where values come later.
_LATER = b"~"
_LATER_DATA = b'"data":~'
# What takes longer than a few milliseconds: bytes of a body, elements of an answer.
_LONG_BODY = 16 << 20
_LONG_ANSWER = 32 * 1024
# Values of a large document, which are read when the tensor is known.
_UNREAD = (Numbers, Values)


def decode(
    model: Signature,
    body: bytes | bytearray | memoryview,
    json_length: int | None,
    limits: Limits,
    in_portions: bool = True,
) -> tuple[InferenceRequest, set[str]]:
    """A request, and the names of the outputs to answer in binary.

    ``json_length``: bytes of the JSON part, None when the body is JSON alone.
    ``in_portions``: read large JSON so; false after ``takes_long`` has said no.
    Raises RequestError: invalid, or too large beyond a limit.
    """
    if json_length is not None and json_length > len(body):
        raise invalid(f"the JSON part is said to have {json_length} bytes, the body has {len(body)}")
    text = body if json_length is None else memoryview(body)[:json_length]
    try:
        if len(text) < _LARGE:
            document = orjson.loads(text)
        elif len(text) < _PORTIONED or not in_portions:
            document = large_json.loads(text)
        else:
            document = portions.loads(text, limits)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise invalid("the body must be a JSON object")
    request_id = document.get("id", "")
    if type(request_id) is not str:
        raise invalid("'id' must be a string")

    tensors = _objects(document, "inputs")
    check_tensor_count(len(tensors), limits)
    binary = b"" if json_length is None else memoryview(body)[json_length:]
    inputs: dict[str, Array] = {}
    for tensor in tensors:
        spec = input_spec(model, tensor.get("name"), inputs)
        shape = spec.check(tensor.get("datatype"), tensor.get("shape"))
        check_shape(spec, shape, limits)
        size = _parameter(tensor, "binary_data_size", int) if "parameters" in tensor else None
        if size is None:
            data = tensor.get("data")
            array = data.tensor(spec, shape) if isinstance(data, _UNREAD) else from_values(spec, shape, data)
        elif "data" in tensor:
            raise invalid(f"input '{spec.name}' has both 'data' and 'binary_data_size'")
        elif not 0 <= size <= len(binary):
            raise invalid(f"input '{spec.name}': binary_data_size {size}, {len(binary)} binary bytes are left")
        else:
            array = from_raw(spec, shape, binary[:size])
            binary = binary[size:]
        check_strings(spec, array, limits)
        inputs[spec.name] = array
    if binary:
        raise invalid(f"{len(binary)} binary bytes belong to no input")
    check_complete(model, inputs)

    binary_by_default = False
    parameters = document.get("parameters")
    if parameters is not None:
        binary_by_default = _parameter(document, "binary_data_output", bool) or False
    requested = document.get("outputs")
    if not requested:
        names = list(model.outputs)
        in_binary = set(names) if binary_by_default else set()
    else:
        requested = _objects(document, "outputs")
        check_tensor_count(len(requested), limits)
        names = check_outputs(model, (output.get("name") for output in requested))
        in_binary = set()
        for name, output in zip(names, requested, strict=True):
            choice = _parameter(output, "binary_data", bool)
            if binary_by_default if choice is None else choice:
                in_binary.add(name)
    request = InferenceRequest(request_id, inputs, names)
    if parameters:
        read_parameters(request, parameters)
    return request, in_binary


def takes_long(model: Signature, body: bytes | bytearray | memoryview, json_length: int | None, limits: Limits) -> bool:
    """Whether a body is not to be decoded on the event loop."""
    size = len(body)
    if size < _PORTIONED:
        return False
    length = size if json_length is None else min(json_length, size)
    if length >= _PORTIONED and not is_plain(memoryview(body)[:length], limits):
        return True
    if size - length >= _LONG_BODY:
        return True
    return any(spec.datatype in ("BYTES", "BOOL") for spec in model.inputs.values())


def answer_takes_long(request: InferenceRequest, results: list[Array], in_binary: set[str]) -> bool:
    """Whether an answer is not to be encoded on the event loop."""
    elements = 0
    for array in results:
        elements += array.size
    if elements <= _LONG_ANSWER:  # as most are: how they are written need not be looked at
        return False
    elements = 0
    for name, array in zip(request.outputs, results, strict=True):
        if array.dtype.kind == "O" or name not in in_binary:
            elements += array.size
    return elements > _LONG_ANSWER


def encode(
    model: Signature, request: InferenceRequest, results: list[Array], in_binary: set[str]
) -> tuple[bytes, int | None]:
    """The body of an answer and, when it has binary tensors, the bytes of its JSON part."""
    head, raw = encode_parts(model, request, results, in_binary)
    return (b"".join((head, *raw)), len(head)) if in_binary else (bytes(head), None)


def encode_parts(
    model: Signature, request: InferenceRequest, results: list[Array], in_binary: set[str]
) -> tuple[bytes | bytearray, list[bytes | memoryview]]:
    """The JSON part of an answer, and the bytes of its binary tensors.

    NaN and infinities, which JSON cannot carry, become null; in binary they are kept.
    """
    outputs: list[dict[str, Any]] = []
    large: list[Array] = []
    raw: list[bytes | memoryview] = []
    for name, array in zip(request.outputs, results, strict=True):
        output: dict[str, Any] = {"name": name, "datatype": model.outputs[name].datatype, "shape": array.shape}
        if name in in_binary:
            raw.append(to_raw(array))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        elif array.size <= _LONG_ANSWER:
            output["data"] = to_values(array)
        else:
            output["data"] = orjson.Fragment(_LATER)
            large.append(array)
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return _with_values(text, large) if large else text, raw


def sampled_parts(
    model: Signature, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> tuple[bytes, list[bytes | memoryview]]:
    """A request and its answer for the admin socket: a JSON part, then the tensors' bytes, inputs first."""
    document: dict[str, Any] = {"model": model.name, "version": model.version}
    raw: list[bytes | memoryview] = []
    for key, specs, tensors in (("inputs", model.inputs, inputs), ("outputs", model.outputs, outputs)):
        document[key] = []
        for name, array in tensors.items():
            raw.append(to_raw(array))
            described = {"name": name, "datatype": specs[name].datatype, "shape": array.shape, "bytes": len(raw[-1])}
            document[key].append(described)
    return orjson.dumps(document), raw


def _with_values(text: bytes, tensors: list[Array]) -> bytearray:
    """The text of an answer with flat lists of the values of large tensors, which are written once, in their place."""
    first, *others = text.split(_LATER_DATA)  # no string of JSON has that in it
    whole = bytearray(first)
    for array, after in zip(tensors, others, strict=True):
        flat = array.reshape(-1)
        whole += b'"data":['
        for start in range(0, len(flat), _STEP):
            values = to_values(flat[start : start + _STEP])
            whole += orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            whole += b","
        whole[-1:] = b"]"
        whole += after
    return whole


def server_metadata(name: str, version: str) -> bytes:
    """Body of ``GET /v2``."""
    return orjson.dumps({"name": name, "version": version, "extensions": list(EXTENSIONS)})


def model_metadata(model: Signature, versions: list[str]) -> bytes:
    """Body of ``GET /v2/models/NAME``."""
    return orjson.dumps(
        {
            "name": model.name,
            "versions": versions,
            "platform": model.platform,
            "inputs": _described(model.inputs),
            "outputs": _described(model.outputs),
            "properties": {"provider": model.provider},
        }
    )


def repository_index(models: Iterable[Mapping[str, str]]) -> bytes:
    """Body of ``POST /v2/repository/index``."""
    return orjson.dumps(list(models))


def wants_ready_only(body: bytes | memoryview) -> bool:
    """Whether the body of ``POST /v2/repository/index``, which may be empty, asks for ready models alone.

    Raises RequestError (invalid).
    """
    ready = json_body(body).get("ready", False)
    if type(ready) is not bool:
        raise invalid("'ready' must be true or false")
    return ready


def check_no_override(body: bytes | memoryview) -> None:
    """Raises RequestError (invalid) when the body of a load or unload, which may be empty, brings a model or options.

    Parameters that change nothing here, such as "unload_dependents", are ignored.
    """
    parameters = json_body(body).get("parameters", {})
    if type(parameters) is not dict:
        raise invalid("'parameters' must be an object")
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise invalid(f"parameter '{name[:100]}' is not supported: models come from the server's configuration")


def json_body(body: bytes | memoryview) -> dict[str, Any]:
    """The object in a body, which may be empty. Raises RequestError (invalid)."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise invalid("the body must be a JSON object")
    return document


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
