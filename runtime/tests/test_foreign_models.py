# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models that nobody here made: sizes they need, outputs the protocol cannot carry, golden cases of any origin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.served_model import ServedModel
from edgeml_runtime.errors import StartError
from edgeml_runtime.serving import EngineOptions
from onnx import TensorProto, helper, numpy_helper
from onnx_models import ModelDirectory, save

FLOAT = TensorProto.FLOAT


def loaded(path: Path, name: str = "model") -> ServedModel:
    return ServedModel(ModelConfig(name, "1.0.0", "", path, {}, "test"), EngineOptions(), None, check=True)


def framed(root: Path, frame: int) -> ModelDirectory:
    """``y`` = ``x`` [batch, samples] cut into frames: fails for fewer samples, as speech models do."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = numpy_helper.from_array(np.array([-1, frame]), "shape")
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", "samples"])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["frames", frame])]
    return save(root, "model", helper.make_graph(nodes, "framed", inputs, outputs, [shape]))


@pytest.mark.parametrize("frame", [1, 2, 32, 512])
def test_sizes_are_tried(tmp_path: Path, frame: int) -> None:
    """Silero_vad, melspectrogram, PP-OCR cannot run on dimensions of 1."""
    model = loaded(framed(tmp_path, frame).path)
    assert model.warm_up_inputs["x"].shape == (1, frame)
    assert model.compute_seconds < 10


def test_no_size_works(tmp_path: Path, start_server: Any) -> None:
    """Served all the same, with a warning that tells what to do; one line, without the engine's codes."""
    model = framed(tmp_path, 7001)
    server = start_server([model])
    server.wait_ready()
    warnings = [line for line in server.log.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "model 1.0.0 cannot run on zeros of any size tried" in warnings[0]
    assert "golden/first.json" in warnings[0]
    for foreign in ("ONNXRuntimeError", "\x1b", "onnxruntime::", ".cc:", ".h:"):
        assert foreign not in server.log
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 7001], "data": [1.0] * 7001}
    assert server.infer("model", {"inputs": [tensor]}).json["outputs"][0]["shape"] == [1, 7001]


@pytest.mark.parametrize("outputs", [{}, {"outputs": []}])
def test_case_that_only_warms_up(tmp_path: Path, outputs: dict[str, Any]) -> None:
    """Its outputs may be left out."""
    model = framed(tmp_path, 7001)
    (model.path / "golden").mkdir()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 7001], "data": [0] * 7001}
    (model.path / "golden" / "first.json").write_text(json.dumps({"inputs": [tensor], **outputs}))
    assert loaded(model.path).compute_seconds < 10


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"outputs": []}, "not a golden case: 'inputs' is missing"),
        ([], "not a golden case: it is a JSON object with inputs, outputs and perhaps tolerance and parameters"),
        ({"inputs": [{"name": "x"}]}, "not a golden case: 'datatype' is missing"),
    ],
)
def test_messages_without_the_words_of_python(tmp_path: Path, case: Any, message: str) -> None:
    model = framed(tmp_path, 2)
    (model.path / "golden").mkdir()
    (model.path / "golden" / "first.json").write_text(json.dumps(case))
    with pytest.raises(StartError) as raised:
        loaded(model.path)
    assert str(raised.value).endswith(message)


def test_zip_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What sklearn's converter makes of a classifier by default."""
    nodes = [
        helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        helper.make_node("ArgMax", ["x"], ["l"], axis=1, keepdims=0),
    ]
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    )
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2])],
        [helper.make_value_info("p", kind), helper.make_tensor_value_info("l", TensorProto.INT64, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "classifier.onnx")
    model = loaded(tmp_path / "classifier.onnx")
    assert list(model.outputs) == ["l"]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "'p' is a seq(map(int64,tensor(float)))" in record.getMessage()
    assert "zipmap=False" in record.getMessage()


def roots(root: Path) -> ModelDirectory:
    """``y`` = Sqrt(x), NaN for what is negative."""
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["x"], ["y"])],
        "roots",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2])],
    )
    return save(root, "roots", graph)


def test_null_is_nan_in_both_directions(tmp_path: Path, start_server: Any) -> None:
    """A golden case that was recorded from our own answer loads."""
    model = roots(tmp_path)
    server = start_server([model])
    server.wait_ready()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [-1.0, 4.0]}
    answer = server.infer("roots", {"inputs": [tensor]}).json
    assert answer["outputs"][0]["data"] == [None, 2.0]
    given = {**tensor, "data": [None, 4.0]}
    assert server.infer("roots", {"inputs": [given]}).json["outputs"][0]["data"] == [None, 2.0]
    (model.path / "golden").mkdir()
    (model.path / "golden" / "first.json").write_text(json.dumps({"inputs": [tensor], "outputs": answer["outputs"]}))
    assert loaded(model.path, "roots").warm_up_outputs == ["y"]
    assert server.rest("POST", "/v2/repository/models/roots/load").status == 200


@pytest.mark.parametrize("datatype", ["INT64", "BOOL", "BYTES"])
def test_null_is_nothing_else(server: Any, datatype: str) -> None:
    tensor = {"name": f"in_{datatype}", "datatype": datatype, "shape": [1, 2], "data": [None, None]}
    assert server.infer("every_type", {"inputs": [tensor]}).status == 400


def test_a_wrong_case_refuses_the_start_too(tmp_path: Path) -> None:
    """One rule at start, load and check."""
    model = roots(tmp_path)
    (model.path / "golden").mkdir()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 4.0]}
    wrong = {**tensor, "name": "y", "data": [1.0, 3.0]}
    (model.path / "golden" / "first.json").write_text(json.dumps({"inputs": [tensor], "outputs": [wrong]}))
    with pytest.raises(StartError, match=r"output 'y' is 2\.0 at \[0, 1\], expected 3\.0"):
        loaded(model.path, "roots")
