# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden cases: what passes, what does not, and what a reader is told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import (
    CaseResult,
    GoldenCase,
    check_case,
    load_cases,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor


class AnsweringClient:
    """Stands for a server that gives one answer."""

    def __init__(self, *answer: Tensor) -> None:
        self.answer = list(answer)

    def infer(self, name: str, version: str, inputs: Any, outputs: Sequence[str], *, binary: bool) -> list[Tensor]:
        return self.answer


def case(*outputs: Tensor, label: str | None = None, absolute: float = 0.01, relative: float = 0.1) -> GoldenCase:
    return GoldenCase("seven", "A seven", (), outputs, absolute, relative, label)


def check(expected: GoldenCase, *answer: Tensor, labels: Sequence[str] = ()) -> CaseResult:
    return check_case(cast(Client, AnsweringClient(*answer)), "digits", "", expected, labels)


def tensor(datatype: str, *values: Any, name: str = "y") -> Tensor:
    return Tensor.from_values(name, datatype, [len(values)], values)


@pytest.mark.parametrize(
    ("datatype", "expected", "seen", "passed"),
    [
        ("FP64", 10.0, 11.01, True),
        ("FP64", 10.0, 11.02, False),
        ("FP64", -10.0, -8.99, True),
        ("FP64", -10.0, -8.98, False),
        ("FP64", 0.0, 0.0101, False),
        ("FP32", math.nan, math.nan, True),
        ("FP32", math.nan, 1.0, False),
        ("FP32", 1.0, math.nan, False),
        ("FP32", math.inf, math.inf, True),
        ("FP32", math.inf, -math.inf, False),
        ("FP32", math.inf, 1.0, False),
        ("FP32", 1.0, math.inf, False),
        ("INT64", 100, 100, True),
        ("INT64", 100, 101, False),
        ("INT64", 2**53, 2**53 + 1, False),
        ("BOOL", True, False, False),
        ("BYTES", b"cat", b"cat", True),
        ("BYTES", b"cat", b"dog", False),
    ],
)
def test_floating_outputs_have_a_tolerance_and_others_none(
    datatype: str, expected: Any, seen: Any, passed: bool
) -> None:
    assert check(case(tensor(datatype, expected)), tensor(datatype, seen)).passed is passed


def test_difference_says_which_element_and_how_many() -> None:
    result = check(case(tensor("FP64", 1.0, 2.0, 3.0)), tensor("FP64", 1.0, 9.0, 8.0))
    assert result.difference == "element 1 of output 'y' is 9, expected 2 within 0.21 (2 of 3 elements differ)"
    assert result.max_absolute_error == 7.0


def test_errors_that_are_not_finite_are_not_numbers() -> None:
    assert check(case(tensor("FP32", 1.0, 2.0)), tensor("FP32", 1.0, math.nan)).max_absolute_error is None
    assert check(case(tensor("FP32", 1.0, 2.0)), tensor("FP32", math.inf, 2.0)).max_absolute_error is None
    assert check(case(tensor("FP32", math.nan)), tensor("FP32", math.nan)).max_absolute_error == 0.0


def test_other_datatype_shape_and_name_are_differences() -> None:
    expected = case(tensor("FP32", 1.0, 2.0))
    assert "is FP64 [2], expected FP32 [2]" in check(expected, tensor("FP64", 1.0, 2.0)).difference
    column = Tensor.from_values("y", "FP32", [2, 1], [1.0, 2.0])
    assert "is FP32 [2, 1], expected FP32 [2]" in check(expected, column).difference
    assert check(expected, tensor("FP32", 1.0, 2.0, name="z")).difference == "output 'y' is missing"


def test_label_is_that_of_the_largest_floating_value() -> None:
    index, scores = tensor("INT64", 9, name="index"), tensor("FP32", 0.1, 0.7, 0.2)
    labels = ["six", "seven", "eight"]
    assert check(case(scores, label="seven"), index, scores, labels=labels).label == "seven"
    wrong = check(case(scores, label="eight"), index, scores, labels=labels)
    assert wrong.difference == "the label is 'seven', expected 'eight'"
    assert not wrong.passed
    assert not check(case(scores, label="seven"), scores, labels=["six"]).passed


DOCUMENT: dict[str, Any] = {
    "description": "A seven",
    "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0.1]}],
    "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [0.2]}],
}


def write(directory: Path, name: str, document: Any) -> None:
    (directory / f"{name}.json").write_text(document if isinstance(document, str) else json.dumps(document))


def test_cases_are_loaded_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "b", DOCUMENT | {"tolerance": {"absolute": 0.5}, "label": "seven"})
    write(tmp_path, "a", DOCUMENT)
    first, second = load_cases(tmp_path)
    assert (first.name, first.absolute, first.relative, first.label) == ("a", 1e-4, 1e-3, None)
    assert (second.name, second.absolute, second.relative, second.label) == ("b", 0.5, 1e-3, "seven")
    assert first.inputs == (tensor("FP32", 0.1, name="x"),)


def test_a_case_may_expect_nothing(tmp_path: Path) -> None:
    """It warms a model up; the runtime takes such a case too."""
    write(tmp_path, "a", {key: value for key, value in DOCUMENT.items() if key != "outputs"})
    write(tmp_path, "b", DOCUMENT | {"outputs": []})
    assert [case.outputs for case in load_cases(tmp_path)] == [(), ()]


@pytest.mark.parametrize(
    ("document", "seen"),
    [
        ("{", "Expecting property name"),
        ([], "not a JSON object"),
        (DOCUMENT | {"tolerence": {}}, "unknown key 'tolerence'"),
        (DOCUMENT | {"inputs": []}, "'inputs' is not a list of at least one tensor"),
        (DOCUMENT | {"outputs": {}}, "'outputs' is not a list of tensors"),
        (DOCUMENT | {"inputs": [{"name": "x"}]}, "no valid 'datatype'"),
        (DOCUMENT | {"tolerance": {"absolute": -1}}, "absolute tolerance is -1"),
        (DOCUMENT | {"tolerance": {"absolute": True}}, "absolute tolerance is True"),
        (DOCUMENT | {"tolerance": {"rel": 1}}, "'tolerance' is {'rel': 1}"),
        (DOCUMENT | {"label": 7}, "'label' is 7"),
    ],
)
def test_case_that_is_not_valid_is_named(tmp_path: Path, document: Any, seen: str) -> None:
    write(tmp_path, "bad", document)
    with pytest.raises(FleetError, match="golden case is not valid") as failure:
        load_cases(tmp_path)
    assert failure.value.where == str(tmp_path / "bad.json")
    assert seen in failure.value.seen


def test_directory_without_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no golden cases"):
        load_cases(tmp_path)
    with pytest.raises(FleetError, match="no such directory"):
        load_cases(tmp_path / "missing")
