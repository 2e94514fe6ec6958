# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Golden cases of a model: inputs, expected outputs and a tolerance. The first one warms the model up.

A case is a file ``golden/*.json``; its tensors are as in the protocol's JSON. A floating value may
differ from the expected one by absolute + relative * |expected|; all others must be equal.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import RequestError, StartError, invalid
from edgeml_runtime.tensors import Array, TensorSpec, from_values

ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One case; ``outputs`` maps the outputs to ask for to what is expected.

    ``parameters`` go with the request over the protocol, such as sequence_id for a model with sequences.
    """

    file: Path
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    absolute: float
    relative: float
    parameters: dict[str, str | int | bool]

    def difference(self, results: Mapping[str, Array]) -> str:
        """What differs from the expected outputs, in words; empty when nothing does."""
        return difference(results, self.outputs, self.absolute, self.relative)


def difference(
    results: Mapping[str, Array],
    wanted: Mapping[str, Array],
    absolute: float = ABSOLUTE_TOLERANCE,
    relative: float = RELATIVE_TOLERANCE,
) -> str:
    """The first result that is not as wanted, in words; empty when all are."""
    for name, expected in wanted.items():
        seen = results[name]
        if seen.shape != expected.shape:
            return f"output '{name}' has shape {list(seen.shape)}, expected {list(expected.shape)}"
        if expected.dtype.kind == "f":
            wrong = ~np.isclose(seen, expected, rtol=relative, atol=absolute, equal_nan=True)
        else:
            wrong = np.asarray(seen != expected)
        if wrong.any():
            first = tuple(int(index[0]) for index in np.nonzero(wrong)) if wrong.ndim else ()
            return f"output '{name}' is {seen[first]} at {list(first)}, expected {expected[first]}"
    return ""


def golden_files(directory: Path) -> list[Path]:
    """The files of a model directory's golden cases, by name."""
    return sorted(directory.glob("golden/*.json"))


def specs_of_case(file: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs as the case itself has them, for a model whose signature is not known. Raises StartError."""
    try:
        case = json.loads(file.read_text(encoding="utf-8"))
        inputs, outputs = (
            {given["name"]: TensorSpec(given["name"], given["datatype"], tuple(given["shape"])) for given in case[side]}
            for side in ("inputs", "outputs")
        )
    except (OSError, ValueError) as error:
        raise StartError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{file}: no golden case: {type(error).__name__} {error}") from None
    return inputs, outputs


def read_case(file: Path, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> GoldenCase:
    """A golden case for a model of that signature. Raises StartError when it does not fit the model."""
    try:
        case = json.loads(file.read_text(encoding="utf-8"))
        given = {tensor["name"]: _tensor(inputs, "input", tensor) for tensor in case["inputs"]}
        expected = {tensor["name"]: _tensor(outputs, "output", tensor) for tensor in case["outputs"]}
        tolerance = case.get("tolerance", {})
        absolute = float(tolerance.get("absolute", ABSOLUTE_TOLERANCE))
        relative = float(tolerance.get("relative", RELATIVE_TOLERANCE))
        parameters = dict(case.get("parameters", {}))
    except (OSError, ValueError, RequestError) as error:
        raise StartError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{file}: no golden case: {type(error).__name__} {error}") from None
    if given.keys() != inputs.keys():
        raise StartError(f"{file}: inputs {sorted(given)}, the model takes {sorted(inputs)}")
    for name, value in parameters.items():
        if type(value) not in (str, int, bool):
            raise StartError(f"{file}: parameter {name!r} is neither a string, an integer, true nor false")
    if not expected:
        raise StartError(f"{file}: no outputs, the model gives {sorted(outputs)}")
    return GoldenCase(file, given, expected, absolute, relative, parameters)


def zeros(inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Zeros (empty strings) for all inputs, with 1 for dimensions of any size."""
    return {spec.name: spec.zeros() for spec in inputs.values()}


def _tensor(specs: Mapping[str, TensorSpec], kind: str, tensor: Mapping[str, Any]) -> Array:
    spec = specs.get(tensor["name"])
    if spec is None:
        raise invalid(f"{kind} {tensor['name']!r}: the model has {sorted(specs)}")
    return from_values(spec, spec.check(tensor["datatype"], tensor["shape"]), tensor["data"])
