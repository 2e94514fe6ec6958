# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX models in BentoML: one service with an API per model.

The directory of the models is in the environment variable BENCHMARK_MODELS, their names, separated by commas, in
BENCHMARK_NAMES.
"""

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import numpy.typing as npt
import onnxruntime
from bentoml.validators import DType

Array = npt.NDArray[np.generic]


@bentoml.service(logging={"access": {"enabled": False}})
class OnnxService:
    """Answers ``{"input": nested lists}`` at ``/NAME`` with nested lists."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        root = Path(os.environ["BENCHMARK_MODELS"])
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(root / name / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in os.environ["BENCHMARK_NAMES"].split(",")
        }

    @bentoml.api
    def tiny(self, input: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        """The perceptron."""
        return self._run("tiny", input)

    @bentoml.api
    def tree(self, input: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        """The boosted trees."""
        return self._run("tree", input)

    @bentoml.api
    def vision(self, input: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        """The convolution net."""
        return self._run("vision", input)

    @bentoml.api
    def file_type(self, input: Annotated[np.ndarray, DType("int32")]) -> np.ndarray:
        """The file type detector."""
        return self._run("file_type", input)

    def _run(self, name: str, values: Array) -> Array:
        session = self._sessions[name]
        (result,) = session.run(None, {session.get_inputs()[0].name: values})
        answer: Array = result
        return answer
