# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX models in PyTriton: Triton Inference Server with inference in Python, as its documentation shows it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from pytriton.model_config import ModelConfig, Tensor
from pytriton.proxy.types import Request
from pytriton.triton import Triton, TritonConfig

Array = npt.NDArray[np.generic]
DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


def _tensor(argument: onnxruntime.NodeArg) -> Tensor:
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return Tensor(name=argument.name, dtype=DTYPES[argument.type], shape=shape)


def _inference(session: onnxruntime.InferenceSession) -> Callable[[Sequence[Request]], list[dict[str, Array]]]:
    input_name, output_name = session.get_inputs()[0].name, session.get_outputs()[0].name

    def infer(requests: Sequence[Request]) -> list[dict[str, Array]]:
        return [{output_name: session.run(None, {input_name: request.data[input_name]})[0]} for request in requests]

    return infer


def main() -> None:
    """Serve the named models below ``--models``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rest", type=int, required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--metrics", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=arguments.rest,
        grpc_address="127.0.0.1",
        grpc_port=arguments.grpc,
        metrics_address="127.0.0.1",
        metrics_port=arguments.metrics,
        allow_gpu_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        for name in arguments.names:
            file = arguments.models / name / "model.onnx"
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            triton.bind(
                model_name=name,
                infer_func=_inference(session),
                inputs=[_tensor(session.get_inputs()[0])],
                outputs=[_tensor(session.get_outputs()[0])],
                config=ModelConfig(batching=False),
            )
        triton.serve()


if __name__ == "__main__":
    main()
