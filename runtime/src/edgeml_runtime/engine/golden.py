# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Inputs to warm a model up with: of its first golden case, else zeros."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeml_runtime.errors import RequestError, StartError, invalid
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec, from_values


def warm_up_request(
    directory: Path, inputs: Mapping[str, TensorSpec], outputs: Sequence[str]
) -> tuple[dict[str, Array], list[str]]:
    """Inputs and the outputs to ask for.

    From ``golden/*.json`` (the first by name), whose tensors are as in the protocol's JSON; without
    golden cases zeros for all inputs, with 1 for dimensions of any size, and all outputs.
    Raises StartError when the golden case does not fit the model.
    """
    file = min(directory.glob("golden/*.json"), default=None)
    if file is None:
        return {spec.name: _zeros(spec) for spec in inputs.values()}, list(outputs)
    try:
        case = json.loads(file.read_text(encoding="utf-8"))
        arrays = {tensor["name"]: _tensor(inputs, tensor) for tensor in case["inputs"]}
        wanted = [tensor["name"] for tensor in case["outputs"]]
    except (OSError, ValueError, RequestError) as error:
        raise StartError(f"{file}: {error}") from None
    except (KeyError, TypeError) as error:
        raise StartError(f"{file}: no golden case: {type(error).__name__} {error}") from None
    if arrays.keys() != inputs.keys():
        raise StartError(f"{file}: inputs {sorted(arrays)}, the model takes {sorted(inputs)}")
    if not wanted or not set(wanted) <= set(outputs):
        raise StartError(f"{file}: outputs {wanted}, the model gives {sorted(outputs)}")
    return arrays, wanted


def _tensor(inputs: Mapping[str, TensorSpec], tensor: Mapping[str, object]) -> Array:
    name = tensor["name"]
    spec = inputs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise invalid(f"input {name!r}: the model takes {sorted(inputs)}")
    return from_values(spec, spec.check(tensor["datatype"], tensor["shape"]), tensor["data"])


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    return np.full(shape, "", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, DTYPES[spec.datatype])
