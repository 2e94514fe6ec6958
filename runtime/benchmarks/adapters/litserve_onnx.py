# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX models in LitServe: one API with one worker, which finds the model by the request's ``model``."""

import argparse
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[np.generic]
DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


class OnnxApi(litserve.LitAPI):
    """Answers ``{"model": NAME, "input": nested lists}`` with ``{"output": nested lists}``."""

    def __init__(self, files: dict[str, Path]) -> None:
        super().__init__(api_path="/predict")
        self._files = files

    def setup(self, device: str) -> None:
        """Open the sessions, in the worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for name, file in self._files.items()
        }
        self._inputs = {name: session.get_inputs()[0] for name, session in self._sessions.items()}

    def decode_request(self, request: dict[str, Any], **_: Any) -> tuple[str, Array]:
        """The model's name and the input."""
        name = request["model"]
        return name, np.asarray(request["input"], dtype=DTYPES[self._inputs[name].type])

    def predict(self, x: tuple[str, Array], **_: Any) -> Array:
        """The output."""
        name, values = x
        (result,) = self._sessions[name].run(None, {self._inputs[name].name: values})
        answer: Array = result
        return answer

    def encode_response(self, output: Array, **_: Any) -> dict[str, Any]:
        """The answer's JSON."""
        return {"output": output.tolist()}


def main() -> None:
    """Serve the named models below ``--models``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    arguments = parser.parse_args()
    api = OnnxApi({name: arguments.models / name / "model.onnx" for name in arguments.names})
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
