# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden cases: recorded inputs of a model with the outputs that they must give."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import FLOATING, Tensor, Value

KEYS = {"description", "inputs", "outputs", "tolerance", "label"}
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GoldenCase:
    """One case of a golden directory; `name` is its file name without the ending.

    `absolute` and `relative` are the tolerance of floating outputs: a value may differ from the expected one by
    absolute + relative * |expected|. `label` is the expected label, if the model has labels.
    """

    name: str
    description: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    absolute: float
    relative: float
    label: str | None


@dataclass(frozen=True)
class CaseResult:
    """The outcome of one case.

    `difference` says what was seen and what was expected; it is empty if the case passed. `max_absolute_error` is the
    largest difference between numbers; None if there are no numbers to compare or one of them is not finite.
    """

    case: str
    description: str
    label: str | None
    difference: str
    max_absolute_error: float | None

    @property
    def passed(self) -> bool:
        return not self.difference

    def as_result(self) -> dict[str, Any]:
        """Return the keys of a module's result."""
        return {
            "case": self.case,
            "description": self.description,
            "passed": self.passed,
            "label": self.label,
            "difference": self.difference,
            "max_absolute_error": self.max_absolute_error,
        }


def load_cases(directory: str | Path) -> list[GoldenCase]:
    """Return the cases of a golden directory, that is its files *.json, in the order of their names.

    Raises
    ------
    FleetError
        There is no case, or one is not valid.
    """
    paths = sorted(Path(directory).glob("*.json"))
    if not paths:
        raise FleetError(
            "There are no golden cases",
            where=str(directory),
            seen="no file *.json" if Path(directory).is_dir() else "no such directory",
            remedy="give the directory of the model's golden cases on the host where the module runs",
        )
    return [load_case(path) for path in paths]


def load_labels(path: str | Path) -> list[str]:
    """Return the labels of a model: one a line, the first for index 0.

    Raises
    ------
    FleetError
        The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            "The labels cannot be read",
            where=str(path),
            seen=str(error),
            remedy="give the path of the model's labels.txt on the host where the module runs",
        ) from error


def check_case(
    client: Client, name: str, version: str, case: GoldenCase, labels: Sequence[str] = (), *, binary: bool = True
) -> CaseResult:
    """Send a case's inputs to a model and compare what it answers.

    Parameters
    ----------
    client : Client
        Connection to the server.
    name, version : str
        The model; an empty version leaves the choice to the server.
    case : GoldenCase
        What to send and to expect.
    labels : sequence of str
        Labels of the model. The label of an answer is the one at the index of the largest value of the first floating
        output.
    binary : bool
        Over REST, whether tensors travel in the binary tensor data extension.

    Raises
    ------
    FleetError
        The server refused the request or gave no answer.
    """
    outputs = client.infer(name, version, case.inputs, [tensor.name for tensor in case.outputs], binary=binary)
    return compare(case, outputs, labels)


def compare(case: GoldenCase, outputs: Sequence[Tensor], labels: Sequence[str] = ()) -> CaseResult:
    """Return the outcome of a case for which a model answered `outputs`; `labels` as for `check_case`."""
    seen = {tensor.name: tensor for tensor in outputs}
    label = _label(outputs, labels)
    differences = [_difference(expected, seen.get(expected.name), case) for expected in case.outputs]
    if case.label is not None and label != case.label:
        differences.append(f"the label is {label!r}, expected {case.label!r}")
    errors = [_largest_error(expected, seen[expected.name]) for expected in case.outputs if expected.name in seen]
    numbers = [error for error in errors if error is not None]
    return CaseResult(
        case=case.name,
        description=case.description,
        label=label,
        difference="; ".join(filter(None, differences)),
        max_absolute_error=max(numbers) if numbers and all(map(math.isfinite, numbers)) else None,
    )


def load_case(path: Path) -> GoldenCase:
    """Return the case in a file; raise FleetError if it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        if unknown := sorted(document.keys() - KEYS):
            raise ValueError(f"it has the unknown key '{unknown[0]}'; known are {', '.join(sorted(KEYS))}")
        if not isinstance(document.get("inputs"), list) or not document["inputs"]:
            raise ValueError("'inputs' is not a list of at least one tensor")
        if not isinstance(document.setdefault("outputs", []), list):
            raise ValueError("'outputs' is not a list of tensors")
        label = document.get("label")
        if not isinstance(label, (str, type(None))):
            raise ValueError(f"'label' is {label!r}, not a string")
        return GoldenCase(
            name=path.stem,
            description=str(document.get("description", "")),
            inputs=tuple(map(Tensor.from_json, document["inputs"])),
            outputs=tuple(map(Tensor.from_json, document["outputs"])),
            absolute=_tolerance(document, "absolute", ABSOLUTE_TOLERANCE),
            relative=_tolerance(document, "relative", RELATIVE_TOLERANCE),
            label=label,
        )
    except (OSError, ValueError) as error:
        raise FleetError(
            "The golden case is not valid",
            where=str(path),
            seen=str(error),
            remedy="correct the file: inputs and outputs are tensors as in the protocol's JSON form",
        ) from error


def _tolerance(document: dict[str, Any], key: str, default: float) -> float:
    tolerance = document.get("tolerance", {})
    if not isinstance(tolerance, dict) or tolerance.keys() - {"absolute", "relative"}:
        raise ValueError(f"'tolerance' is {tolerance!r}, not an object with 'absolute' and 'relative'")
    value = tolerance.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"the {key} tolerance is {value!r}, not a number of zero or more")
    return float(value)


def _difference(expected: Tensor, seen: Tensor | None, case: GoldenCase) -> str:
    """Return how an output differs from the expected one, empty if it does not."""
    if seen is None:
        return f"output '{expected.name}' is missing"
    if (seen.datatype, seen.shape) != (expected.datatype, expected.shape):
        return (
            f"output '{expected.name}' is {seen.datatype} {list(seen.shape)}, "
            f"expected {expected.datatype} {list(expected.shape)}"
        )
    wrong = []
    for index, (want, got) in enumerate(_pairs(expected, seen)):
        allowed = _allowed(want, case) if expected.datatype in FLOATING else 0.0
        if not _close(want, got, allowed):
            wrong.append((index, want, got, allowed))
    if not wrong:
        return ""
    index, want, got, allowed = wrong[0]
    within = f" within {allowed:.3g}" if expected.datatype in FLOATING else ""
    count = math.prod(expected.shape)
    return (
        f"element {index} of output '{expected.name}' is {_show(got)}, expected {_show(want)}{within} "
        f"({len(wrong)} of {count} elements differ)"
    )


def _pairs(expected: Tensor, seen: Tensor) -> list[tuple[Value, Value]]:
    """Return the elements of two tensors of one shape side by side; raise ValueError if one lacks some of its own."""
    wanted, got = expected.values(), seen.values()
    if len(wanted) != len(got):
        raise ValueError(f"output '{seen.name}' has {len(got)} elements, its shape {len(wanted)}")
    return list(zip(wanted, got))


def _allowed(expected: Value, case: GoldenCase) -> float:
    return case.absolute + case.relative * abs(float(expected)) if math.isfinite(float(expected)) else 0.0


def _is_nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _close(expected: Value, seen: Value, allowed: float) -> bool:
    if expected == seen or (_is_nan(expected) and _is_nan(seen)):
        return True
    if isinstance(expected, bytes) or isinstance(seen, bytes):
        return False
    return bool(abs(seen - expected) <= allowed)


def _largest_error(expected: Tensor, seen: Tensor) -> float | None:
    """Return the largest difference between the numbers of two tensors; None if they cannot be compared."""
    if (seen.datatype, seen.shape) != (expected.datatype, expected.shape) or expected.datatype in ("BYTES", "BOOL"):
        return None
    errors = [0.0 if _close(want, got, 0) else abs(float(got) - float(want)) for want, got in _pairs(expected, seen)]
    # max() would pass over a NaN that is not the first.
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=None)


def _label(outputs: Sequence[Tensor], labels: Sequence[str]) -> str | None:
    """Return the label at the index of the largest value of the first floating output."""
    floating = next((tensor for tensor in outputs if tensor.datatype in FLOATING), None)
    if not labels or floating is None:
        return None
    values = floating.values()
    index = max(range(len(values)), key=values.__getitem__, default=len(labels))
    return labels[index] if index < len(labels) else None


def _show(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return repr(value if not isinstance(value, bytes) else value[:60])
