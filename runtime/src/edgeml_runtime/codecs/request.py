# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What both codecs check and read alike."""

import math
from collections.abc import Iterable, Mapping

from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.inference import InferenceRequest, SequencePosition, Signature
from edgeml_runtime.tensors import Array, TensorSpec


def input_spec(model: Signature, name: object, seen: Mapping[str, Array]) -> TensorSpec:
    """The model's input of that name. Raises RequestError (invalid) for an unknown or repeated one."""
    spec = model.inputs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise invalid(f"model '{model.name}' has no input {name!r}; it takes {', '.join(model.inputs)}")
    if spec.name in seen:
        raise invalid(f"input '{spec.name}' is given more than once")
    return spec


def check_same_tensors(before: Signature, now: Signature) -> None:
    """Raises RequestError (unavailable) when a request was read for a model whose place one of other tensors took."""
    if (before.inputs, before.outputs) != (now.inputs, now.outputs):
        message = f"model '{now.name}' has got other tensors while the request was read; try again"
        raise RequestError(Failure.UNAVAILABLE, message)


def check_complete(model: Signature, inputs: Mapping[str, Array]) -> None:
    """Raises RequestError (invalid) when an input of the model is missing."""
    if len(inputs) != len(model.inputs):
        missing = ", ".join(name for name in model.inputs if name not in inputs)
        raise invalid(f"model '{model.name}' needs input {missing}")


def check_outputs(model: Signature, names: Iterable[object]) -> list[str]:
    """The requested outputs. Raises RequestError (invalid) for an unknown or repeated one."""
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str) or name not in model.outputs:
            raise invalid(f"model '{model.name}' has no output {name!r}; it gives {', '.join(model.outputs)}")
        if name in checked:
            raise invalid(f"output '{name}' is requested more than once")
        checked.append(name)
    return checked


def check_tensor_count(count: int, limits: Limits) -> None:
    """Raises RequestError (too large) when a request has more inputs or requested outputs than the limit."""
    if count > limits.tensors:
        raise RequestError(Failure.TOO_LARGE, f"{count} tensors, at most {limits.tensors} are allowed")


def check_shape(spec: TensorSpec, shape: tuple[int, ...], limits: Limits) -> None:
    """Raises RequestError (too large) for more dimensions or elements than the limits, before any is read."""
    if len(shape) > limits.dimensions:
        message = f"input '{spec.name}': {len(shape)} dimensions, at most {limits.dimensions} are allowed"
        raise RequestError(Failure.TOO_LARGE, message)
    most = limits.strings if spec.datatype == "BYTES" else limits.elements
    if (elements := math.prod(shape)) > most:
        message = f"input '{spec.name}': {elements} elements, at most {most} are allowed"
        raise RequestError(Failure.TOO_LARGE, message)


def check_strings(spec: TensorSpec, array: Array, limits: Limits) -> None:
    """Raises RequestError (too large) when an element of BYTES is longer than the limit."""
    if spec.datatype == "BYTES":
        longest = max(
            (len(element if type(element) is bytes else element.encode()) for element in array.flat), default=0
        )
        if longest > limits.string_bytes:
            message = f"input '{spec.name}': an element has {longest} bytes, at most {limits.string_bytes} are allowed"
            raise RequestError(Failure.TOO_LARGE, message)


def read_parameters(request: InferenceRequest, parameters: Mapping[str, object]) -> None:
    """Let the parameters that the server knows take effect; it ignores the others.

    ``timeout``: microseconds, 0 for none. ``sequence_id``: an integer or a string, 0 or empty for no
    sequence; ``sequence_start``, ``sequence_end``: booleans. Extensions "schedule_policy" and
    "sequence". Raises RequestError (invalid).
    """
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise invalid(f"parameter 'timeout' is {timeout!r}, not a number of microseconds")
    if timeout:
        request.timeout = timeout / 1e6
    sequence = parameters.get("sequence_id", 0)
    if type(sequence) not in (int, str):
        raise invalid(f"parameter 'sequence_id' is {sequence!r}, neither an integer nor a string")
    ends = [parameters.get(name, False) for name in ("sequence_start", "sequence_end")]
    for name, value in zip(("sequence_start", "sequence_end"), ends, strict=True):
        if type(value) is not bool:
            raise invalid(f"parameter '{name}' is {value!r}, neither true nor false")
    if sequence:
        request.sequence = SequencePosition(str(sequence), start=bool(ends[0]), end=bool(ends[1]))
    elif any(ends):
        raise invalid("sequence_start or sequence_end without a sequence_id")
