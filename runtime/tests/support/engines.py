# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine in the test's own process, without a transport, and models whose answers tell their version."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.config import Config, read_config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import RequestError
from edgeml_runtime.inference import InferenceRequest, SequencePosition
from edgeml_runtime.metrics import Metrics
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on an event loop, for a minute at most."""
    asyncio.run(asyncio.wait_for(test(), 60))


async def failure_of(answer: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> RequestError:
    """The error that the awaitable must raise."""
    with pytest.raises(RequestError) as raised:
        await answer
    return raised.value


def configuration(*models: dict[str, Any]) -> Config:
    """A configuration with these models."""
    return read_config({"listen": {"rest": ["127.0.0.1:8000"]}, "models": list(models)}, "test.json")


async def started(*models: dict[str, Any]) -> Engine:
    """An engine with these models, loaded."""
    engine = Engine(configuration(*models), Metrics())
    await engine.start()
    return engine


def features(rows: Any) -> InferenceRequest:
    """A request to a model with the input ``x``."""
    return InferenceRequest("", {"x": np.asarray(rows, dtype=np.float32)}, ["y"])


def step(rows: Any, id: str = "a", start: bool = False, end: bool = False) -> InferenceRequest:
    """A request of a sequence."""
    return InferenceRequest("", features(rows).inputs, ["y"], sequence=SequencePosition(id, start, end))


def scaled(
    root: Path, factor: float, version: str = "1.0.0", name: str = "scaled", products: int = 0, **serving: Any
) -> dict[str, Any]:
    """``y`` = factor * ``x``, both [-1, 2]; the entry in "models". More ``products`` take longer to compute."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["product_0"])]
    constants = [numpy_helper.from_array(np.array(factor, dtype=np.float32), "factor")]
    for index in range(products):
        nodes.append(helper.make_node("MatMul", [f"product_{index}", "identity"], [f"product_{index + 1}"]))
    if products:
        constants.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "identity"))
    nodes.append(helper.make_node("Identity", [f"product_{products}"], ["y"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        constants,
    )
    golden = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [factor, 2 * factor]}],
    }
    directory = root / f"{name}-{version}-{factor}"
    directory.mkdir()
    return described(save(directory, name, graph, golden).path, name, version, serving)


def described(path: Path, name: str, version: str, serving: dict[str, Any]) -> dict[str, Any]:
    """The entry in "models" for a directory, which gets that version and serving.json."""
    description = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(description | {"version": version}))
    if serving:
        (path / "serving.json").write_text(json.dumps(serving))
    return {"name": name, "version": version, "path": str(path)}
