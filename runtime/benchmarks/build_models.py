# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the benchmark's models, each with one real input and the engine's own answer to it.

Runs in an environment of requirements/models.txt. Below the output directory:
``NAME/model.onnx`` and ``NAME/model.json`` (a model directory of the runtime), ``NAME.npz`` (arrays ``input`` and
``output``). Every model has one input and one output, so that each server carries the same tensors.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import magika
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from magika.types import Seekable
from onnx import helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier

OPSET = 17
SEED = 7

Array = npt.NDArray[np.generic]
Built = tuple[onnx.ModelProto, Array]


def tiny() -> Built:
    """A perceptron 4-16-3: what a handful of sensor values needs. FP32 [-1, 4] to FP32 [-1, 3]."""
    random = np.random.default_rng(SEED)
    weights = {
        "w1": random.normal(0, 0.5, (4, 16)).astype(np.float32),
        "b1": random.normal(0, 0.1, 16).astype(np.float32),
        "w2": random.normal(0, 0.5, (16, 3)).astype(np.float32),
        "b2": random.normal(0, 0.1, 3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return _model(graph), np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)


def tree() -> Built:
    """100 boosted trees, trained on scikit-learn's breast cancer data. FP32 [-1, 30] to FP32 [-1, 2]."""
    measurements, diagnoses = load_breast_cancer(return_X_y=True)
    classifier = GradientBoostingClassifier(random_state=SEED).fit(measurements, diagnoses)
    model = convert_sklearn(
        classifier,
        initial_types=[("x", FloatTensorType([None, 30]))],
        options={"zipmap": False},
        target_opset=OPSET,
    )
    label, _probabilities = model.graph.output
    model.graph.output.remove(label)
    return model, measurements[:1].astype(np.float32)


def vision() -> Built:
    """SqueezeNet 1.1 with random weights (speed does not depend on them). FP32 [1, 3, 224, 224] to [1, 1000, 1, 1]."""
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    model = onnx.load(source)
    random = np.random.default_rng(SEED)
    shapes = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(int(size) for size in shapes.pop(node.input[0]))
        # He's initialisation keeps activations of every layer in range; a bias is a vector.
        deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.01
        values = random.normal(0, deviation, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(item)
    for weight in [each for each in model.graph.input if each.name != "data_0"]:  # this old format lists them too
        model.graph.input.remove(weight)
    pixels = np.random.default_rng(SEED).integers(0, 256, (1, 3, 224, 224))
    return model, (pixels / 255).astype(np.float32)


def file_type() -> Built:
    """The file type detector of the Python package magika, unchanged. INT32 [-1, 2048] to FP32 [-1, 214]."""
    directory = Path(magika.__file__).parent / "models" / "standard_v3_3"
    settings = json.loads((directory / "config.min.json").read_text(encoding="utf-8"))
    keys = ("beg_size", "mid_size", "end_size", "padding_token", "block_size", "use_inputs_at_offsets")
    with Path(__file__).open("rb") as this_file:
        features = magika.Magika._extract_features_from_seekable(Seekable(this_file), **{k: settings[k] for k in keys})
    values = np.array([features.beg + features.mid + features.end], dtype=np.int32)
    return onnx.load(directory / "model.onnx"), values


MODELS: dict[str, Callable[[], Built]] = {"tiny": tiny, "tree": tree, "vision": vision, "file_type": file_type}


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def write(root: Path, name: str, model: onnx.ModelProto, values: Array) -> None:
    """Write one model directory, and its case beside it."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString(deterministic=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the rest is about graph optimisation
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: values})
    if not np.isfinite(answer).all():
        raise SystemExit(f"{name}: the model's answer is not finite")
    (directory / "model.onnx").write_bytes(content)
    description = {"name": name, "version": "1.0.0", "platform": "onnxruntime_onnx", "file": "model.onnx"}
    (directory / "model.json").write_text(json.dumps(description), encoding="utf-8")
    names = {"input_name": session.get_inputs()[0].name, "output_name": session.get_outputs()[0].name}
    np.savez(root / f"{name}.npz", input=values, output=answer, **names)


def main() -> None:
    """Write all models to the directory that the only argument names."""
    root = Path(sys.argv[1])
    for name, build in MODELS.items():
        model, values = build()
        write(root, name, model, values)
        print(f"built {name}: input {values.dtype} {list(values.shape)}")


if __name__ == "__main__":
    main()
