# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Model directories that cannot be served: exit code 1 and one line that says why."""

import json
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from onnx_models import ModelDirectory, perceptron, save


def refused(start_server: Any, model: ModelDirectory) -> str:
    server = start_server([model])
    assert server.process.wait(240) == 1
    lines = [line for line in server.log.splitlines() if line.startswith("edgeml-runtime: ")]
    assert len(lines) == 1
    assert "Traceback" not in server.log
    return str(lines[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "another", "'name' is 'another', expected 'perceptron'"),
        ("version", "2.0.0", "'version' is '2.0.0', expected '1.0.0'"),
        ("platform", "tensorflow", "'platform' is 'tensorflow', expected one of onnxruntime_onnx, python, pipeline"),
        ("file", "../model.onnx", "'file' is '../model.onnx'"),
        ("file", "..", "cannot load it"),
        ("file", "missing.onnx", "cannot load it"),
        ("file", None, "'file' is None"),
    ],
)
def test_wrong_description(start_server: Any, tmp_path: Path, key: str, value: object, message: str) -> None:
    model = perceptron(tmp_path)
    description = model.path / "model.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {key: value}))
    assert message in refused(start_server, model)


def test_no_directory(start_server: Any, tmp_path: Path) -> None:
    model = perceptron(tmp_path)
    (model.path / "model.json").unlink()
    assert "model.json: No such file" in refused(start_server, model)


def test_corrupt_file(start_server: Any, tmp_path: Path) -> None:
    model = perceptron(tmp_path)
    file = model.path / "model.onnx"
    file.write_bytes(file.read_bytes()[:100])
    assert "ONNX Runtime cannot load it" in refused(start_server, model)


def test_datatype_that_the_protocol_lacks(start_server: Any, tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "bf16", tensors[:1], tensors[1:])
    assert "'a' is a tensor(bfloat16)" in refused(start_server, save(tmp_path, "bf16", graph))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "inputs [], the model takes ['features']"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}, "input 'x'"),
        ({"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1]}]}, "1 elements"),
        ({"inputs": None}, "not a golden case"),
    ],
)
def test_golden_case_of_another_model(
    start_server: Any, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model = perceptron(tmp_path)
    case = model.path / "golden" / "first.json"
    case.write_text(json.dumps(json.loads(case.read_text()) | change))
    assert message in refused(start_server, model)


def test_second_model_stops_the_start_too(start_server: Any, tmp_path: Path) -> None:
    first, second = perceptron(tmp_path), perceptron(tmp_path, "second")
    (second.path / "model.json").unlink()
    server = start_server([first, second])
    assert server.process.wait(240) == 1
    assert "second" in server.log
