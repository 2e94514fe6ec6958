# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Golden cases of a model: inputs, expected outputs and a tolerance. The first one warms the model up.

A case is a file ``golden/*.json``; its tensors are as in the protocol's JSON. A floating value may
differ from the expected one by absolute + relative * |expected|; all others must be equal.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import RequestError, StartError, invalid
from edgeml_runtime.tensors import Array, TensorSpec, from_values

#: Sizes of dimensions to warm a model up with.
_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MOST_ZEROS = 1 << 22
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One case; ``outputs`` maps the outputs to ask for to what is expected; without any, the case only warms up.

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
            {
                given["name"]: TensorSpec(given["name"], given["datatype"], tuple(given["shape"]))
                for given in case.get(side, ())
            }
            for side in ("inputs", "outputs")
        )
    except (OSError, ValueError) as error:
        raise StartError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{file}: not a golden case: {_fault(error)}") from None
    return inputs, outputs


def _fault(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"'{error.args[0]}' is missing"
    return "it is a JSON object with inputs, outputs and perhaps tolerance and parameters"


def read_case(file: Path, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> GoldenCase:
    """A golden case for a model of that signature. Raises StartError when it does not fit the model."""
    try:
        case = json.loads(file.read_text(encoding="utf-8"))
        given = {tensor["name"]: _tensor(inputs, "input", tensor) for tensor in case["inputs"]}
        expected = {tensor["name"]: _tensor(outputs, "output", tensor) for tensor in case.get("outputs", ())}
        tolerance = case.get("tolerance", {})
        absolute = float(tolerance.get("absolute", ABSOLUTE_TOLERANCE))
        relative = float(tolerance.get("relative", RELATIVE_TOLERANCE))
        parameters = dict(case.get("parameters", {}))
    except (OSError, ValueError, RequestError) as error:
        raise StartError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{file}: not a golden case: {_fault(error)}") from None
    if given.keys() != inputs.keys():
        raise StartError(f"{file}: inputs {sorted(given)}, the model takes {sorted(inputs)}")
    for name, value in parameters.items():
        if type(value) not in (str, int, bool):
            raise StartError(f"{file}: parameter {name!r} is neither a string, an integer, true nor false")
    return GoldenCase(file, given, expected, absolute, relative, parameters)


def zeros(specs: Iterable[TensorSpec]) -> Iterator[dict[str, Array]]:
    """Zeros (empty strings) for all inputs, in several sizes: many models cannot run on dimensions of 1.

    First with 1 for dimensions of any size, then with larger ones, the first dimension still 1 since it is mostly the
    batch; then that larger as well.
    """
    inputs = list(specs)
    tried = set()
    for first, size in ((1, 1), *((1, size) for size in _SIZES), *((size, size) for size in _SIZES[:5])):
        shapes = [
            tuple(
                wanted if wanted != -1 else first if index == 0 and len(spec.shape) > 1 else size
                for index, wanted in enumerate(spec.shape)
            )
            for spec in inputs
        ]
        if tuple(shapes) not in tried and sum(map(math.prod, shapes)) <= _MOST_ZEROS:
            tried.add(tuple(shapes))
            yield {spec.name: spec.zeros(shape) for spec, shape in zip(inputs, shapes, strict=True)}


def _tensor(specs: Mapping[str, TensorSpec], kind: str, tensor: Mapping[str, Any]) -> Array:
    spec = specs.get(tensor["name"])
    if spec is None:
        raise invalid(f"{kind} {tensor['name']!r}: the model has {sorted(specs)}")
    return from_values(spec, spec.check(tensor["datatype"], tensor["shape"]), tensor["data"])
