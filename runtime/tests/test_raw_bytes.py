# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""BYTES that are bytes: an encoded picture reaches Python code and pipelines as it is."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.errors import ConfigurationError
from edgeml_runtime.serving import PYTHON, ServingOptions, read_serving_file
from python_models import python_model

PICTURE = bytes.fromhex("ffd8ffe0") + bytes(range(256)) + b"\0"
IN = {"name": "picture", "datatype": "BYTES", "shape": [-1], "raw": True}
OUT = {"name": "same", "datatype": "BYTES", "shape": [-1], "raw": True}
SIZE = {"name": "size", "datatype": "INT64", "shape": [-1]}
CODE = """
    import numpy

    def infer(inputs):
        pictures = inputs["picture"]
        assert all(type(picture) is bytes for picture in pictures)
        return {"same": list(pictures), "size": numpy.array([len(picture) for picture in pictures])}
"""


@pytest.fixture(params=[False, True], ids=["here", "isolated"])
def server(request: pytest.FixtureRequest, tmp_path: Path, start_server: Any) -> Any:
    running = start_server([python_model(tmp_path, "echo", CODE, (IN,), (OUT, SIZE), isolated=request.param)])
    running.wait_ready()
    return running


def test_rest_in_binary(server: Any) -> None:
    raw = struct.pack("<I", len(PICTURE)) + PICTURE
    tensor = {"name": "picture", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = server.infer("echo", text + raw, Inference_Header_Content_Length=str(len(text)))
    assert answer.status == 200, answer
    head = int(answer.headers["inference-header-content-length"])
    assert answer.body[head:] == raw + struct.pack("<q", len(PICTURE))
    in_json = json.dumps({"inputs": [tensor]}).encode()
    answer = server.infer("echo", in_json + raw, Inference_Header_Content_Length=str(len(in_json)))
    assert answer.status == 400
    assert "ask for it in binary" in answer.json["error"]


def test_rest_in_json(server: Any) -> None:
    tensor = {"name": "picture", "datatype": "BYTES", "shape": [2], "data": ["ü", ""]}
    answer = server.infer("echo", {"inputs": [tensor]}).json
    assert [output["data"] for output in answer["outputs"]] == [["ü", ""], [2, 0]]


@pytest.mark.parametrize("way", ["raw", "typed"])
def test_grpc(server: Any, way: str) -> None:
    raw = struct.pack("<I", len(PICTURE)) + PICTURE
    message = messages.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="picture", datatype="BYTES", shape=[1])
    if way == "raw":
        message.raw_input_contents.append(raw)
    else:
        tensor.contents.bytes_contents.append(PICTURE)
    assert list(server.grpc("ModelInfer", message).raw_output_contents) == [raw, struct.pack("<q", len(PICTURE))]


def test_raw_is_for_bytes(tmp_path: Path) -> None:
    model = python_model(tmp_path, "echo", CODE, ({**SIZE, "raw": True},), (OUT,))
    with pytest.raises(ConfigurationError, match=r"inputs\[0\]\.raw: seen true for INT64"):
        read_serving_file(model.path, ServingOptions(), PYTHON)
