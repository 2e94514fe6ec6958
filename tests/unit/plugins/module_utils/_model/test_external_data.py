# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models whose weights lie in files of their own: each artifact has what its file names, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.external_data import external_files
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model, Variant, model_files
from onnx import TensorProto, helper, numpy_helper


def save(path: Path, weights: str = "", inner: str = "") -> None:
    """Write a model whose weights are in a file `weights` beside it, those of a branch in `inner`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [numpy_helper.from_array(numpy.ones((4, 4), numpy.float32), name) for name in ("w", "v")]
    y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "yz")
    constant = helper.make_node("Constant", [], ["z"], value=tensors[1])
    branch = helper.make_graph([constant], "branch", [], [z])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    used = helper.make_node("Identity", ["w"], ["unused"])
    model = helper.make_model(helper.make_graph([choice, used], "graph", [condition], [y], [tensors[0]]))
    then = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    for tensor, file in ((model.graph.initializer[0], weights), (then, inner)):
        if file:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=file)
            tensor.external_data.add(key="length", value="64")
            if not file.startswith(("/", "..")):
                (path.parent / file).write_bytes(bytes(64))
    path.write_bytes(model.SerializeToString())


def test_what_an_onnx_file_names(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx")
    assert external_files(tmp_path / "model.onnx") == []
    save(tmp_path / "model.onnx", "model.onnx.data", "inner.bin")
    assert external_files(tmp_path / "model.onnx") == ["inner.bin", "model.onnx.data"]
    onnx.load(tmp_path / "model.onnx")  # which reads both


@pytest.mark.parametrize("content", [b"", b"weights", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 40, b"\x3a\x02" * 99])
def test_what_is_no_onnx_file_names_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert external_files(tmp_path / "model.onnx") == []


@pytest.mark.parametrize("directory", ["", "parts/"])
def test_a_variant_has_its_own_weights_only(tmp_path: Path, directory: str) -> None:
    for name in ("big", "small"):
        save(tmp_path / f"{directory}{name}.onnx", f"{name}.onnx.data", "shared.bin")
    (tmp_path / "labels.txt").write_text("one")
    others = (f"{directory}big.onnx",)
    model = Model(
        "m", "1.0.0", "onnxruntime_onnx", tmp_path, "model.onnx", Variant("s", f"{directory}small.onnx", others)
    )
    assert set(model_files(model)) == {"labels.txt", "model.onnx", "shared.bin", "small.onnx.data"}


@pytest.mark.parametrize("weights", ["model.onnx.data", "../model.onnx.data", "/model.onnx.data"])
def test_weights_that_are_not_there_are_refused(tmp_path: Path, weights: str) -> None:
    save(tmp_path / "model.onnx", weights)
    if weights == "model.onnx.data":
        (tmp_path / weights).unlink()
    with pytest.raises(FleetError, match="The model's weights are missing") as caught:
        model_files(Model("m", "1.0.0", "onnxruntime_onnx", tmp_path, "model.onnx"))
    assert repr(weights) in caught.value.seen
