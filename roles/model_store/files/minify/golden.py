# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden cases and labelled examples, as arrays. The collection itself is not installed where this runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3
DATATYPES = {
    "BOOL": "bool", "BYTES": "object", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip

Arrays = dict[str, Any]


class MinifyError(Exception):
    """What is wrong, and what to do."""


@dataclass(frozen=True)
class GoldenCase:
    """One file of a golden directory; `label` is not compared, since it follows from the outputs."""

    path: Path
    inputs: Arrays
    outputs: Arrays
    absolute: float
    relative: float

    def passes(self, answer: Arrays) -> bool:
        """Whether an answer is the expected one: numbers within the tolerance, everything else equal."""
        for name, expected in self.outputs.items():
            seen = answer.get(name)
            if seen is None or seen.shape != expected.shape:
                return False
            if expected.dtype.kind != "f":
                if not np.array_equal(seen, expected):
                    return False
            elif not np.all(np.abs(seen - expected) <= self.absolute + self.relative * np.abs(expected)):
                return False
        return True


def read_cases(directory: Path) -> list[GoldenCase]:
    """Return the golden cases of a directory, in the order of their names. Raise MinifyError if there are none."""
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise MinifyError(
            f"There are no golden cases to judge a smaller variant by. Seen: no *.json in {directory}. What to do: add "
            "golden/ to the model's source, or name the directory by golden in the catalogue."
        )
    return [_read_case(path) for path in paths]


def _read_case(path: Path) -> GoldenCase:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        tolerance = document.get("tolerance", {})
        return GoldenCase(
            path,
            {tensor["name"]: _array(tensor) for tensor in document["inputs"]},
            {tensor["name"]: _array(tensor) for tensor in document["outputs"]},
            float(tolerance.get("absolute", ABSOLUTE_TOLERANCE)),
            float(tolerance.get("relative", RELATIVE_TOLERANCE)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MinifyError(
            f"The golden case {path} is not valid. Seen: {error!r}. What to do: correct the file; inputs and outputs "
            "are tensors as in the protocol's JSON form."
        ) from error


def _array(tensor: dict[str, Any]) -> Any:
    return np.array(tensor["data"], dtype=DATATYPES[tensor["datatype"]]).reshape(tensor["shape"])


def loosened(case: GoldenCase, deviation: float) -> str:
    """Return the case as JSON, `deviation` added to the tolerance of its numbers."""
    document = json.loads(case.path.read_text(encoding="utf-8"))
    document["tolerance"] = {"absolute": case.absolute + deviation, "relative": case.relative}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"


def read_evaluation(path: Path) -> tuple[Arrays, Any]:
    """Return inputs and labels of a labelled set: an .npz with one array for each input, and `labels`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        labels = arrays.pop("labels")
        if not arrays or any(len(array) != len(labels) for array in arrays.values()) or not len(labels):
            raise ValueError("the arrays do not have one row for each label")
    except (OSError, KeyError, ValueError) as error:
        raise MinifyError(
            f"The evaluation set {path} cannot be used. Seen: {error!r}. What to do: write it with numpy.savez, one "
            "array for each input of the model and integers `labels`, all of the same length."
        ) from error
    return arrays, labels
