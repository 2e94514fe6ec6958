# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model in ONNX Runtime."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

# Imported where the first model is loaded: listeners answer before this is done.
import onnxruntime

from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.tensors import Array, TensorSpec

PLATFORM = "onnxruntime_onnx"

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

_InvalidArgument = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

logger = logging.getLogger(__name__)


class OnnxModel:
    """A loaded ONNX model: its inputs and outputs by name, and ``run``."""

    def __init__(self, file: Path, threads: int) -> None:
        """Load ``file`` with ``threads`` engine threads. Raises StartError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings are about graph optimisation
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions have no common base
            raise StartError(f"{file}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        self.inputs = _specs(file, self._session.get_inputs())
        self.outputs = _specs(file, self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Compute the named outputs, in their order, from all inputs.

        Raises RequestError: invalid when the engine refuses an input, internal when it fails.
        """
        try:
            results: list[Array] = self._session.run(outputs, inputs)
        except _InvalidArgument as error:
            raise invalid(_first_line(error)) from None
        except Exception as error:  # the engine's exceptions have no common base
            logger.error("the engine failed: %s", _first_line(error))
            raise RequestError(Failure.INTERNAL, f"the engine failed: {_first_line(error)}") from None
        return results


def model_file(directory: Path, name: str, version: str) -> Path:
    """The ONNX file that ``model.json`` in a model directory names.

    Raises StartError when the directory does not hold that model, for this platform.
    """
    description = directory / "model.json"
    try:
        document = json.loads(description.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{description}: {error.strerror}; models[].path must be an unpacked model") from None
    except ValueError as error:
        raise StartError(f"{description}: no JSON: {error}") from None
    if not isinstance(document, dict):
        raise StartError(f"{description}: no JSON object")
    for key, wanted in (("name", name), ("version", version), ("platform", PLATFORM)):
        if document.get(key) != wanted:
            raise StartError(f"{description}: '{key}' is {document.get(key)!r}, expected {wanted!r}")
    file = document.get("file")
    if not isinstance(file, str) or not file or Path(file).name != file:
        raise StartError(f"{description}: 'file' is {file!r}, expected the name of a file in {directory}")
    return directory / file


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
