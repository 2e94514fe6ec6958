# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX models in KServe's Python server: custom models, as its documentation shows them."""

import argparse
from pathlib import Path

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.utils.utils import generate_uuid


class OnnxModel(Model):
    """Serves one ONNX file."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name)
        self._file = file
        self.load()

    def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])
        self._output = self._session.get_outputs()[0].name
        self.ready = True
        return True

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        """Answer one request."""
        inputs = {item.name: item.as_numpy() for item in payload.inputs}
        (result,) = self._session.run(None, inputs)
        output = InferOutput(name=self._output, shape=list(result.shape), datatype="FP32")
        output.set_data_from_numpy(result, binary_data=payload.use_binary_outputs)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def main() -> None:
    """Serve the named models below ``--models``."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    arguments = parser.parse_args()
    ModelServer().start([OnnxModel(name, arguments.models / name / "model.onnx") for name in arguments.names])


if __name__ == "__main__":
    main()
