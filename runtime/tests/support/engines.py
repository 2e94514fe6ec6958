# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine in the test's own process, without a transport, and models whose answers tell their version."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeml_runtime.config import Config
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import RequestError
from edgeml_runtime.inference import InferenceRequest, SequencePosition
from edgeml_runtime.metrics import Metrics
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save


@dataclass(frozen=True)
class Configured:
    """An entry in "models", as start_server takes it."""

    config: dict[str, Any]


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
    root: Path,
    factor: float,
    version: str = "1.0.0",
    name: str = "scaled",
    products: int = 0,
    shape: Sequence[str | int] = ("rows", "columns"),
    **serving: Any,
) -> dict[str, Any]:
    """``y`` = factor * ``x``; the entry in "models". Fails for a NaN. More ``products`` take longer to compute."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["product_0"]),
        *(helper.make_node("Mul", [f"product_{i}", "one"], [f"product_{i + 1}"]) for i in range(products)),
        *no_nan("x"),
        helper.make_node("Add", [f"product_{products}", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.array(value, dtype=np.float32), key)
            for key, value in (("factor", factor), ("one", 1), ("zero", [0]))
        ],
    )
    golden = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [factor, 2 * factor]}],
    }
    directory = root / f"{name}-{version}-{factor}"
    directory.mkdir()
    return described(save(directory, name, graph, golden).path, name, version, serving)


def no_nan(tensor: str) -> list[onnx.NodeProto]:
    """Nodes that give ``nothing``, 0, and fail for a NaN, which has no index in the table ``zero`` of one element."""
    return [
        helper.make_node("IsNaN", [tensor], ["is_nan"]),
        helper.make_node("Cast", ["is_nan"], ["nan_as_integer"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["nan_as_integer"], ["index"], keepdims=0),
        helper.make_node("Gather", ["zero", "index"], ["nothing"]),
    ]


def described(path: Path, name: str, version: str, serving: dict[str, Any]) -> dict[str, Any]:
    """The entry in "models" for a directory, which gets that version and serving.json."""
    description = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(description | {"version": version}))
    if serving:
        (path / "serving.json").write_text(json.dumps(serving))
    return {"name": name, "version": version, "path": str(path)}


def running_sum(
    root: Path, version: str = "1.0.0", name: str = "running_sum", slow: int = 0, **options: Any
) -> dict[str, Any]:
    """``y`` [1, 2] = the sum of all ``x`` [1, 2] of a sequence so far; fails for a NaN. ``slow``: see ``scaled``."""
    nodes = [helper.make_node("Add", ["x", "total"], ["sum_0"])]
    for index in range(slow):
        nodes.append(helper.make_node("MatMul", [f"sum_{index}", "identity"], [f"sum_{index + 1}"]))
    nodes += [
        *no_nan("x"),
        helper.make_node("Add", [f"sum_{slow}", "nothing"], ["y"]),
        helper.make_node("Identity", ["y"], ["total_out"]),
    ]
    tensors = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "total", "y", "total_out")}
    constants = {"identity": np.eye(2, dtype=np.float32), "zero": np.zeros(1, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        name,
        [tensors["x"], tensors["total"]],
        [tensors["y"], tensors["total_out"]],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    directory = root / f"{name}-{version}"
    directory.mkdir()
    serving = {"sequence": {"states": [{"input": "total", "output": "total_out"}], **options}}
    golden = {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
    }
    return described(save(directory, name, graph, golden).path, name, version, serving)


def recurrent(root: Path, **state: Any) -> dict[str, Any]:
    """A GRU with random weights: ``x`` [steps, 1, 3] to ``y`` [steps, 1, 1, 4], state ``h`` [1, batch, 4]."""
    random = np.random.default_rng(7)
    weights = {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)}
    graph = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "r", "b", "", "h"], ["y", "h_out"], hidden_size=4)],
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", 1, 3]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, "batch", 4]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["steps", 1, 1, 4]),
            helper.make_tensor_value_info("h_out", TensorProto.FLOAT, [1, "batch", 4]),
        ],
        [
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    serving = {"sequence": {"states": [{"input": "h", "output": "h_out", **state}]}}
    return described(save(root, "recurrent", graph).path, "recurrent", "1.0.0", serving)
