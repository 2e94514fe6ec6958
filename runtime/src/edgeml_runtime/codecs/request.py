# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What both codecs check alike."""

from collections.abc import Iterable, Mapping

from edgeml_runtime.errors import invalid
from edgeml_runtime.inference import Signature
from edgeml_runtime.tensors import Array, TensorSpec


def input_spec(model: Signature, name: object, seen: Mapping[str, Array]) -> TensorSpec:
    """The model's input of that name. Raises RequestError (invalid) for an unknown or repeated one."""
    spec = model.inputs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise invalid(f"model '{model.name}' has no input {name!r}; it takes {', '.join(model.inputs)}")
    if spec.name in seen:
        raise invalid(f"input '{spec.name}' is given more than once")
    return spec


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
