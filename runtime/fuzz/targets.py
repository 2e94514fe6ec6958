# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: functions that take any bytes and fail when a parser breaks its word.

A parser gives a request that fits the model, or raises RequestError with the right failure. It
raises nothing else, and takes no more memory than ``MEMORY_FACTOR`` times its input and
``MEMORY_ALLOWANCE`` bytes.
"""

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from edgeml_runtime.codecs import json_binary, protobuf
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec
from mutation import Choices, json_request, protobuf_request

T = TypeVar("T")

# The worst JSON is a list of one-entry objects: about 30 bytes of Python objects for each byte.
MEMORY_FACTOR = 64
MEMORY_ALLOWANCE = 1 << 20


class Broken(Exception):
    """A parser broke its word."""


@dataclass(frozen=True)
class Model:
    """A signature of the fuzzed models: output ``out_X`` is what came as input ``in_X``."""

    name: str
    inputs: dict[str, TensorSpec]
    version: str = "1.0.0"
    digest: str = ""
    platform: str = "onnxruntime_onnx"
    outputs: dict[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the outputs."""
        outputs = {
            name.replace("in_", "out_"): TensorSpec(name.replace("in_", "out_"), spec.datatype, spec.shape)
            for name, spec in self.inputs.items()
        }
        object.__setattr__(self, "outputs", outputs)


def _model(name: str, **inputs: tuple[str, tuple[int, ...]]) -> Model:
    return Model(name, {key: TensorSpec(key, datatype, shape) for key, (datatype, shape) in inputs.items()})


MODELS = [
    _model("single", in_FP32=("FP32", (-1, 4))),
    _model("fixed", in_FP32=("FP32", (1, 2, 2)), in_INT64=("INT64", (2,))),
    _model("any_rank", in_FP64=("FP64", ()), in_BYTES=("BYTES", ())),
    _model("every_type", **{f"in_{datatype}": (datatype, (-1, 2)) for datatype in DTYPES}),
    _model("empty", in_UINT8=("UINT8", (0, 3)), in_BOOL=("BOOL", (-1,))),
]


def json_bytes(data: bytes) -> None:
    """Any bytes as a JSON body."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    _decode_json(model, data[1:], None)


def json_structured(data: bytes) -> None:
    """Almost valid REST bodies."""
    choices = Choices(data)
    model = choices.of(MODELS)
    _decode_json(model, *json_request(model, choices))


def protobuf_bytes(data: bytes) -> None:
    """Any bytes as a ModelInferRequest, and as a message that names a model."""
    model = MODELS[data[0] % len(MODELS)] if data else MODELS[0]
    with suppress(RequestError):
        protobuf.parse_model(data)
    _decode_protobuf(model, data[1:])


def protobuf_structured(data: bytes) -> None:
    """Almost valid ModelInferRequests."""
    choices = Choices(data)
    model = choices.of(MODELS)
    _decode_protobuf(model, protobuf_request(model, choices))


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (json_bytes, json_structured, protobuf_bytes, protobuf_structured)
}


def seeds(target: str) -> list[bytes]:
    """Valid requests for the targets that take bytes as they are; the others make their own."""
    if target == "json_bytes":
        return [bytes([index]) + json_request(model, Choices(b""))[0] for index, model in enumerate(MODELS)]
    if target == "protobuf_bytes":
        return [bytes([index]) + protobuf_request(model, Choices(b"")) for index, model in enumerate(MODELS)]
    return []


def _decode_json(model: Model, body: bytes, json_length: int | None) -> None:
    decoded = _bounded(len(body), lambda: json_binary.decode(model, body, json_length))
    if decoded is None:
        return
    request, in_binary = decoded
    _check_request(model, request)
    if not in_binary <= set(request.outputs):
        raise Broken(f"binary outputs {in_binary}, requested are {request.outputs}")
    answer, head = json_binary.encode(model, request, _echo(request), in_binary)
    json.loads(answer[:head])


def _decode_protobuf(model: Model, body: bytes) -> None:
    request = _bounded(len(body), lambda: protobuf.decode(model, protobuf.parse_inference(body), Limits()))
    if request is not None:
        _check_request(model, request)
        protobuf.encode(model, request, _echo(request))


def _bounded(size: int, parse: Callable[[], T]) -> T | None:
    """The result of a parser, None when it refused its input; Broken when it took too much memory."""
    result = None
    if not tracemalloc.is_tracing():
        tracemalloc.start(1)
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    try:
        result = parse()
    except RequestError as error:
        if error.failure not in (Failure.INVALID, Failure.TOO_LARGE):
            raise Broken(f"a parser said {error.failure}: {error}") from error
        if not str(error):
            raise Broken("an error without a message") from error
    _, peak = tracemalloc.get_traced_memory()
    if peak - before > MEMORY_FACTOR * size + MEMORY_ALLOWANCE:
        raise Broken(f"{size} bytes of input took {peak - before} bytes of memory")
    return result


def _check_request(model: Model, request: InferenceRequest) -> None:
    if request.inputs.keys() != model.inputs.keys():
        raise Broken(f"inputs {list(request.inputs)}, the model takes {list(model.inputs)}")
    for name, array in request.inputs.items():
        _check_array(model.inputs[name], array)
    if not request.outputs or len(set(request.outputs)) != len(request.outputs):
        raise Broken(f"outputs {request.outputs}")
    if not set(request.outputs) <= set(model.outputs):
        raise Broken(f"outputs {request.outputs}, the model gives {list(model.outputs)}")
    if request.timeout is not None and not 0 < request.timeout < float("inf"):
        raise Broken(f"timeout {request.timeout}")


def _check_array(spec: TensorSpec, array: Array) -> None:
    dtype = DTYPES[spec.datatype]
    if array.dtype != dtype or array.dtype.byteorder == ">":
        raise Broken(f"{spec} has dtype {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise Broken(f"{spec} is not contiguous or not aligned: {array.flags}")
    if spec.shape and (
        array.ndim != len(spec.shape)
        or any(wanted not in (-1, seen) for seen, wanted in zip(array.shape, spec.shape, strict=True))
    ):
        raise Broken(f"{spec} has shape {array.shape}")
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise Broken(f"{spec} has a boolean that is neither 0 nor 1")
    if dtype.kind == "O":
        for element in array.flat:
            if type(element) is not str:
                raise Broken(f"{spec} has an element {element!r}")
            element.encode()


def _echo(request: InferenceRequest) -> list[Array]:
    return [request.inputs[name.replace("out_", "in_")] for name in request.outputs]
