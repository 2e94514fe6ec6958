# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Model directories of platform python, made for the tests."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

from onnx_models import ModelDirectory, perceptron

VALUES = {"name": "values", "datatype": "FP32", "shape": [-1]}
RESULT = {"name": "result", "datatype": "FP32", "shape": [-1]}


def python_model(
    root: Path,
    name: str,
    code: str,
    inputs: tuple[dict[str, Any], ...] = (VALUES,),
    outputs: tuple[dict[str, Any], ...] = (RESULT,),
    **serving: object,
) -> ModelDirectory:
    """A directory with ``model.py``; by default it takes FP32 ``values`` and gives FP32 ``result``."""
    directory = root / name
    directory.mkdir(exist_ok=True)
    (directory / "model.py").write_text(dedent(code))
    description = {"name": name, "version": "1.0.0", "platform": "python", "file": "model.py"}
    (directory / "model.json").write_text(json.dumps(description))
    (directory / "serving.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs, **serving}))
    return ModelDirectory(name, directory)


def values_request(*values: float) -> dict[str, Any]:
    """A REST inference with the tensor ``values``."""
    return {"inputs": [{**VALUES, "shape": [len(values)], "data": list(values)}]}


PREPARE = """
    import numpy

    def infer(inputs):
        return {"scaled": inputs["raw"].astype(numpy.float32) / 255}
"""
LABEL = """
    def load(context):
        global labels
        labels = context.parameters["labels"]

    def infer(inputs):
        return {"label": [labels[index] for index in inputs["best"]]}
"""
PICTURES = {"name": "pictures", "datatype": "UINT8", "shape": [-1, 4]}
SCORES = {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
LABELS = {"name": "labels", "datatype": "BYTES", "shape": [-1]}


def classifier_steps() -> list[dict[str, Any]]:
    """Scale, compute with the perceptron, name the best class."""
    return [
        {
            "platform": "python",
            "file": "prepare.py",
            "inputs": {"raw": "pictures"},
            "outputs": {"scaled": "features"},
            "input_specs": [{"name": "raw", "datatype": "UINT8", "shape": [-1, -1]}],
            "output_specs": [{"name": "scaled", "datatype": "FP32", "shape": [-1, -1]}],
        },
        {
            "platform": "onnxruntime_onnx",
            "file": "model.onnx",
            "inputs": {"features": "features"},
            "outputs": {"scores": "scores", "best": "classes"},
        },
        {
            "platform": "python",
            "file": "label.py",
            "inputs": {"best": "classes"},
            "outputs": {"label": "labels"},
            "input_specs": [{"name": "best", "datatype": "INT64", "shape": [-1]}],
            "output_specs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}],
        },
    ]


def classifier(root: Path, name: str = "classifier", **serving: object) -> ModelDirectory:
    """A pipeline around the perceptron: UINT8 ``pictures`` in, ``scores`` and BYTES ``labels`` out."""
    directory = perceptron(root, name).path
    (directory / "golden" / "first.json").unlink()
    (directory / "prepare.py").write_text(dedent(PREPARE))
    (directory / "label.py").write_text(dedent(LABEL))
    description = {"name": name, "version": "1.0.0", "platform": "pipeline", "file": "serving.json"}
    (directory / "model.json").write_text(json.dumps(description))
    document: dict[str, object] = {
        "inputs": [PICTURES],
        "outputs": [SCORES, LABELS],
        "steps": classifier_steps(),
        "parameters": {"labels": ["one", "two", "three"]},
        **serving,
    }
    (directory / "serving.json").write_text(json.dumps(document))
    return ModelDirectory(name, directory)
