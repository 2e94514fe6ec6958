# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models in model directories, made for the tests."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# ONNX element types by the protocol's datatypes.
ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

SLOW_MATRIX = 96


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory and how the server's configuration names it."""

    name: str
    path: Path
    protocols: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Stands for the digest of the model's tar."""
        files = sorted(file for file in self.path.iterdir() if file.suffix in (".onnx", ".py"))
        return "sha256:" + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    @property
    def config(self) -> dict[str, Any]:
        """The entry in "models"."""
        entry = {"name": self.name, "version": "1.0.0", "digest": self.digest, "path": str(self.path)}
        return {**entry, "protocols": self.protocols} if self.protocols else entry


def save(root: Path, name: str, graph: onnx.GraphProto, golden: dict[str, Any] | None = None) -> ModelDirectory:
    """Write a model directory."""
    directory = root / name
    directory.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    description = {"name": name, "version": "1.0.0", "platform": "onnxruntime_onnx", "file": "model.onnx"}
    (directory / "model.json").write_text(json.dumps(description))
    if golden is not None:
        (directory / "golden").mkdir()
        (directory / "golden" / "first.json").write_text(json.dumps(golden))
    return ModelDirectory(name, directory)


def every_type(root: Path, datatypes: tuple[str, ...] = tuple(ELEMENT_TYPES)) -> ModelDirectory:
    """For each datatype an input ``in_<datatype>`` of shape [-1, 2] that becomes output ``out_<datatype>``."""
    nodes, inputs, outputs = [], [], []
    for datatype in datatypes:
        element = ELEMENT_TYPES[datatype]
        nodes.append(helper.make_node("Identity", [f"in_{datatype}"], [f"out_{datatype}"]))
        inputs.append(helper.make_tensor_value_info(f"in_{datatype}", element, [f"rows_{datatype}", 2]))
        outputs.append(helper.make_tensor_value_info(f"out_{datatype}", element, [f"rows_{datatype}", 2]))
    return save(root, "every_type", helper.make_graph(nodes, "every_type", inputs, outputs))


def perceptron(root: Path, name: str = "perceptron") -> ModelDirectory:
    """``scores`` [-1, 3] and ``best`` [-1] from ``features`` [-1, 4]: a ReLU layer with known weights."""
    first = np.arange(-8, 8, dtype=np.float32).reshape(4, 4) / 8
    second = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 6
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 4])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["rows"]),
        ],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    features = np.ones((1, 4), dtype=np.float32)
    golden = {
        "description": "all features one",
        "inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": features.reshape(-1).tolist()}],
        "outputs": [
            {
                "name": "scores",
                "shape": [1, 3],
                "datatype": "FP32",
                "data": perceptron_scores(features).reshape(-1).tolist(),
            }
        ],
        "tolerance": {"absolute": 1e-4, "relative": 1e-3},
    }
    return save(root, name, graph, golden)


def perceptron_scores(features: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the perceptron answers, computed by numpy."""
    first = np.arange(-8, 8, dtype=np.float32).reshape(4, 4) / 8
    second = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 6
    return (np.maximum(features @ first, 0) @ second).astype(np.float32)


def repeated_product(root: Path, warm_up_steps: int, name: str = "repeated_product") -> ModelDirectory:
    """As slow as its input says: multiplies a matrix by the identity ``steps`` times and gives the ``corner``, 1."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("MatMul", ["product", "identity"], ["product_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [SLOW_MATRIX, SLOW_MATRIX]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product_out", TensorProto.FLOAT, [SLOW_MATRIX, SLOW_MATRIX]),
        ],
    )
    identity = np.eye(SLOW_MATRIX, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["steps"], ["count"]),
            helper.make_node("Loop", ["count", "", "identity"], ["product_end"], body=body),
            helper.make_node("Slice", ["product_end", "zero", "one", "both_axes"], ["corner"]),
        ],
        name,
        [helper.make_tensor_value_info("steps", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("corner", TensorProto.FLOAT, [1, 1])],
        [
            numpy_helper.from_array(identity, "identity"),
            numpy_helper.from_array(np.array([0, 0]), "zero"),
            numpy_helper.from_array(np.array([1, 1]), "one"),
            numpy_helper.from_array(np.array([0, 1]), "both_axes"),
        ],
    )
    golden = {
        "description": "long enough to be computed on an engine thread",
        "inputs": [{"name": "steps", "shape": [1], "datatype": "INT64", "data": [warm_up_steps]}],
        "outputs": [{"name": "corner", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}],
        "tolerance": {"absolute": 0, "relative": 0},
    }
    return save(root, name, graph, golden)
