# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden cases: real inputs with the outputs that a correctly served model must return.

A case is one JSON file under `golden/` of a model directory. Its tensors are written as in the Open Inference
Protocol v2 (inference request and response, JSON form): name, shape, datatype and the flat data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATATYPES: dict[str, str] = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}
"""NumPy dtype name to Open Inference Protocol datatype."""

TOLERANCE: dict[str, float] = {"absolute": 5e-4, "relative": 1e-3}
"""Far above what single precision differs between processors (about 1e-6), far below a wrong answer."""

DECIMALS = 4
"""Digits kept of expected outputs: coarser than the last-digit differences of processors, finer than TOLERANCE."""

MARGIN = 0.5
"""Least lead of the best class over the next, in probability: no rounding turns the answer."""


@dataclass(frozen=True)
class GoldenCase:
    """One real input, what the model must answer and the class that a person expects; empty without classes.

    `inputs` and `outputs` map tensor names to arrays (float32, int32 or int64, of any shape). The first float32
    output holds one probability per label, shape [1, number of labels].
    """

    name: str
    description: str
    inputs: Mapping[str, npt.NDArray[np.generic]]
    outputs: Mapping[str, npt.NDArray[np.generic]]
    label: str = ""

    def probabilities(self) -> npt.NDArray[np.float32]:
        """Return the first float32 output, flat. Raises ValueError if there is none."""
        for array in self.outputs.values():
            if array.dtype == np.float32:
                return array.astype(np.float32).ravel()
        raise ValueError(f"golden case {self.name}: no float32 output among {sorted(self.outputs)}")


def answers_clearly(case: GoldenCase, labels: Sequence[str]) -> bool:
    """Return whether the model gives the expected label, ahead of every other by at least MARGIN.

    Raises ValueError if the probabilities do not match `labels` one to one.
    """
    probabilities = case.probabilities()
    if len(probabilities) != len(labels):
        raise ValueError(f"golden case {case.name}: {len(probabilities)} probabilities for {len(labels)} labels")
    runner_up, best = np.argsort(probabilities)[-2:]
    return labels[best] == case.label and bool(probabilities[best] - probabilities[runner_up] >= MARGIN)


def write_golden_cases(
    model_directory: Path,
    cases: Sequence[GoldenCase],
    labels: Sequence[str],
    tolerance: Mapping[str, float] = TOLERANCE,
) -> None:
    """Write one `golden/<name>.json` per case, and `labels.txt` if there are labels; cases of an earlier run go.

    `tolerance` is written into each case: an answer may differ by absolute + relative * |expected|.

    Raises ValueError for a case that the model does not answer clearly, a dtype outside DATATYPES, or a value
    that JSON cannot hold (NaN, infinity). Nothing is written then.
    """
    for case in cases:
        if labels and not answers_clearly(case, labels):
            probabilities = case.probabilities()
            raise ValueError(
                f"golden case {case.name}: expected {case.label}, the model says "
                f"{labels[int(probabilities.argmax())]} with probability {probabilities.max():.3f}; "
                f"it must lead by {MARGIN}. Choose another input"
            )
    texts = {case.name: _as_json(case, tolerance) for case in cases}

    golden = model_directory / "golden"
    golden.mkdir(parents=True, exist_ok=True)
    for stale in golden.glob("*.json"):
        stale.unlink()
    for name, text in texts.items():
        (golden / f"{name}.json").write_text(text, encoding="utf-8")
    if labels:
        (model_directory / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def output_directory(description: str) -> Path:
    """Parse the command line that every build.py has and return the directory to write, created if missing.

    Ends the program with status 2 and a message if the directory cannot be made.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="model directory to write (created if missing; files of an earlier run are replaced)",
    )
    output: Path = parser.parse_args().output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: {error}; name a directory that this user can write")
    return output


def _as_json(case: GoldenCase, tolerance: Mapping[str, float]) -> str:
    document = {
        "description": case.description,
        "inputs": [_tensor(name, array) for name, array in case.inputs.items()],
        "outputs": [_tensor(name, array, DECIMALS) for name, array in case.outputs.items()],
        "tolerance": dict(tolerance),
        **({"label": case.label} if case.label else {}),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"


def _tensor(name: str, array: npt.NDArray[np.generic], decimals: int | None = None) -> dict[str, object]:
    datatype = DATATYPES.get(array.dtype.name)
    if datatype is None:
        raise ValueError(f"tensor {name}: dtype {array.dtype} is not one of {', '.join(DATATYPES)}")
    data = array.ravel().tolist()
    if datatype == "FP32":
        data = [float(str(value)) for value in array.ravel()]  # the shortest text that is read as the same number
    if decimals is not None and datatype == "FP32":
        data = [round(value, decimals) for value in data]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}
