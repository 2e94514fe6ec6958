# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Model directories of platform python, made for the tests."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

from onnx_models import ModelDirectory

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
