# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What golden_cases.py writes is what the runtime's clients read, and a doubtful case is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MODELS = Path(__file__).resolve().parents[3] / "models"
LABELS = ["cat", "dog", "fox"]


@pytest.fixture(scope="module")
def golden_cases() -> ModuleType:
    return load("golden_cases", MODELS / "golden_cases.py")


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def make_case(golden_cases: ModuleType, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "name": "dog_1",
        "description": "A dog",
        "inputs": {"image": np.array([[[0.1, 16.0]]], dtype=np.float32)},
        "outputs": {
            "index": np.array([1], dtype=np.int64),
            "probabilities": np.array([[0.1, 0.8765432, 0.02]], dtype=np.float32),
        },
        "label": "dog",
    }
    return golden_cases.GoldenCase(**(fields | changes))


def probabilities(*values: float) -> dict[str, Any]:
    return {"probabilities": np.array([values], dtype=np.float32)}


def test_tensors_are_written_as_in_the_open_inference_protocol(golden_cases: ModuleType, tmp_path: Path) -> None:
    golden_cases.write_golden_cases(tmp_path, [make_case(golden_cases)], LABELS)

    assert (tmp_path / "labels.txt").read_text() == "cat\ndog\nfox\n"
    document = json.loads((tmp_path / "golden" / "dog_1.json").read_text())
    assert document["inputs"] == [{"name": "image", "shape": [1, 1, 2], "datatype": "FP32", "data": [0.1, 16.0]}]
    assert document["outputs"] == [
        {"name": "index", "shape": [1], "datatype": "INT64", "data": [1]},
        {"name": "probabilities", "shape": [1, 3], "datatype": "FP32", "data": [0.1, 0.8765, 0.02]},
    ]
    assert document["label"] == "dog"
    assert document["description"] == "A dog"
    assert set(document["tolerance"]) == {"absolute", "relative"}


def test_inputs_keep_every_bit(golden_cases: ModuleType, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    golden_cases.write_golden_cases(tmp_path, [make_case(golden_cases, inputs={"x": values})], LABELS)

    data = json.loads((tmp_path / "golden" / "dog_1.json").read_text())["inputs"][0]["data"]
    assert np.array(data, dtype=np.float32).tobytes() == values.tobytes()


def test_rounding_of_expected_outputs_stays_well_within_the_tolerance(golden_cases: ModuleType) -> None:
    assert golden_cases.TOLERANCE["absolute"] / 10 >= 0.5 * 10**-golden_cases.DECIMALS


def test_last_digit_differences_between_processors_write_the_same_bytes(
    golden_cases: ModuleType, tmp_path: Path
) -> None:
    written = []
    for number, difference in enumerate((0.0, 1e-6)):
        case = make_case(golden_cases, outputs=probabilities(0.1, 0.8 + difference, 0.1))
        golden_cases.write_golden_cases(tmp_path / str(number), [case], LABELS)
        written.append((tmp_path / str(number) / "golden" / "dog_1.json").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("outputs", "seen"),
    [
        pytest.param(probabilities(0.9, 0.05, 0.05), "the model says cat with probability 0.900", id="wrong"),
        pytest.param(probabilities(0.3, 0.6, 0.1), "it must lead by 0.5", id="thin margin"),
        pytest.param(probabilities(0.1, 0.9), "2 probabilities for 3 labels", id="labels of another model"),
        pytest.param({"index": np.array([1])}, "no float32 output", id="no probabilities"),
        pytest.param(
            probabilities(0.1, 0.9, 0.0) | {"score": np.array([0.9])}, "dtype float64 is not one of", id="dtype"
        ),
        pytest.param(
            probabilities(0.1, 0.9, 0.0) | {"score": np.array([np.inf], dtype=np.float32)},
            "not JSON compliant",
            id="infinity",
        ),
    ],
)
def test_a_bad_case_is_refused_and_nothing_is_written(
    golden_cases: ModuleType, tmp_path: Path, outputs: dict[str, Any], seen: str
) -> None:
    with pytest.raises(ValueError, match=seen):
        golden_cases.write_golden_cases(
            tmp_path, [make_case(golden_cases), make_case(golden_cases, name="bad", outputs=outputs)], LABELS
        )
    assert list(tmp_path.iterdir()) == []


def test_cases_of_an_earlier_run_go(golden_cases: ModuleType, tmp_path: Path) -> None:
    golden_cases.write_golden_cases(tmp_path, [make_case(golden_cases, name="old")], LABELS)
    golden_cases.write_golden_cases(tmp_path, [make_case(golden_cases, name="new")], LABELS)

    assert [path.name for path in (tmp_path / "golden").iterdir()] == ["new.json"]


def test_an_output_that_is_a_file_ends_with_a_message(
    golden_cases: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["build.py", "--output", str(tmp_path / "taken")])
    with pytest.raises(SystemExit, match="2"):
        golden_cases.output_directory("Build a model.")
    assert str(tmp_path / "taken") in capsys.readouterr().err


def test_a_model_without_classes_has_cases_without_labels(golden_cases: ModuleType, tmp_path: Path) -> None:
    golden_cases.write_golden_cases(tmp_path, [make_case(golden_cases, label="")], [])
    assert "label" not in json.loads((tmp_path / "golden" / "dog_1.json").read_text())
    assert not (tmp_path / "labels.txt").exists()
