# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Signatures for the fuzzed parsers, and the check that a request fits one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec


class Broken(Exception):
    """A parser broke its word."""


@dataclass
class Model:
    """A signature of the fuzzed models: output ``out_X`` is what came as input ``in_X``."""

    name: str
    inputs: Mapping[str, TensorSpec]
    version: str = "1.0.0"
    digest: str = ""
    platform: str = "onnxruntime_onnx"
    provider: str = "CPU"
    outputs: Mapping[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the outputs."""
        self.outputs = {
            name.replace("in_", "out_"): TensorSpec(name.replace("in_", "out_"), spec.datatype, spec.shape)
            for name, spec in self.inputs.items()
        }


def _model(name: str, **inputs: tuple[str, tuple[int, ...]]) -> Model:
    return Model(name, {key: TensorSpec(key, datatype, shape) for key, (datatype, shape) in inputs.items()})


MODELS = [
    _model("single", in_FP32=("FP32", (-1, 4))),
    _model("fixed", in_FP32=("FP32", (1, 2, 2)), in_INT64=("INT64", (2,))),
    _model("any_rank", in_FP64=("FP64", ()), in_BYTES=("BYTES", ())),
    _model("every_type", **{f"in_{datatype}": (datatype, (-1, 2)) for datatype in DTYPES}),
    _model("empty", in_UINT8=("UINT8", (0, 3)), in_BOOL=("BOOL", (-1,))),
]


def check_request(model: Model, request: InferenceRequest) -> None:
    """Raises Broken when a request does not fit the model."""
    if request.inputs.keys() != model.inputs.keys():
        raise Broken(f"inputs {list(request.inputs)}, the model takes {list(model.inputs)}")
    for name, array in request.inputs.items():
        _check_array(model.inputs[name], array)
    if not request.outputs or len(set(request.outputs)) != len(request.outputs):
        raise Broken(f"outputs {request.outputs}")
    if not set(request.outputs) <= set(model.outputs):
        raise Broken(f"outputs {request.outputs}, the model gives {list(model.outputs)}")
    if request.timeout is not None and not 0 < request.timeout < float("inf"):
        raise Broken(f"timeout {request.timeout}")


def _check_array(spec: TensorSpec, array: Array) -> None:
    dtype = DTYPES[spec.datatype]
    if array.dtype != dtype or array.dtype.byteorder == ">":
        raise Broken(f"{spec} has dtype {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise Broken(f"{spec} is not contiguous or not aligned: {array.flags}")
    if spec.shape and (
        array.ndim != len(spec.shape)
        or any(wanted not in (-1, seen) for seen, wanted in zip(array.shape, spec.shape, strict=True))
    ):
        raise Broken(f"{spec} has shape {array.shape}")
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise Broken(f"{spec} has a boolean that is neither 0 nor 1")
    if dtype.kind == "O":
        for element in array.flat:
            if type(element) is not str:
                raise Broken(f"{spec} has an element {element!r}")
            element.encode()


def echo(request: InferenceRequest) -> list[Array]:
    """The inputs as outputs."""
    return [request.inputs[name.replace("out_", "in_")] for name in request.outputs]
