# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model in ONNX Runtime."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

# Imported where the first model is loaded: listeners answer before this is done.
import onnxruntime

from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.serving import EngineOptions
from edgeml_runtime.tensors import Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_OPTIMIZATION = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_InvalidArgument = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

logger = logging.getLogger(__name__)


class OnnxModel:
    """A loaded ONNX model: its inputs and outputs by name, and ``run``."""

    blocking = False

    def __init__(self, file: Path, engine: EngineOptions) -> None:
        """Load ``file``. Raises StartError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = engine.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings are about graph optimisation
        options.enable_cpu_mem_arena = engine.arena
        options.graph_optimization_level = _OPTIMIZATION[engine.optimization]
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if engine.spinning else "0")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions have no common base
            raise StartError(f"{file}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        self.inputs = _specs(file, self._session.get_inputs())
        self.outputs = _specs(file, self._session.get_outputs())

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs; see Model.run."""
        options = None
        if cancellation is not None:
            options = onnxruntime.RunOptions()
            cancellation.bind(lambda: setattr(options, "terminate", True))
        try:
            results: list[Array] = self._session.run(outputs, inputs, options)
        except _InvalidArgument as error:
            raise invalid(_first_line(error)) from None
        except Exception as error:  # the engine's exceptions have no common base
            if cancellation is None or not cancellation.cancelled:
                logger.error("the engine failed: %s", _first_line(error))
            raise RequestError(Failure.INTERNAL, f"the engine failed: {_first_line(error)}") from None
        return results

    def close(self) -> None:
        """Give the session's memory back."""
        del self._session


def _specs(file: Path, tensors: Sequence[onnxruntime.NodeArg]) -> dict[str, TensorSpec]:
    specs = {}
    for tensor in tensors:
        datatype = _DATATYPES.get(tensor.type)
        if datatype is None:
            raise StartError(f"{file}: '{tensor.name}' is a {tensor.type}, which the protocol cannot carry here")
        shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
        specs[tensor.name] = TensorSpec(tensor.name, datatype, shape)
    return specs


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
