# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Every gRPC method, every way to call it wrongly."""

import json
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import ModelDirectory, perceptron_scores
from serving import Server, features_message, features_request

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -0.5, 0.25, -0.25]]


def raw_message(rows: list[list[float]]) -> messages.ModelInferRequest:
    message = messages.ModelInferRequest(model_name="perceptron")
    message.inputs.add(name="features", datatype="FP32", shape=[len(rows), 4])
    message.raw_input_contents.append(np.array(rows, dtype="<f4").tobytes())
    return message


def test_live_and_ready(server: Server) -> None:
    assert server.grpc("ServerLive", messages.ServerLiveRequest()).live
    assert server.grpc("ServerReady", messages.ServerReadyRequest()).ready
    assert server.grpc("ModelReady", messages.ModelReadyRequest(name="perceptron")).ready
    assert server.grpc("ModelReady", messages.ModelReadyRequest(name="perceptron", version="1.0.0")).ready


def test_server_metadata(server: Server) -> None:
    metadata = server.grpc("ServerMetadata", messages.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("edgeml-runtime", "0.1.0")


def test_model_metadata_is_that_of_rest(server: Server) -> None:
    metadata = server.grpc("ModelMetadata", messages.ModelMetadataRequest(name="perceptron"))
    described = {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        **{
            side: [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)} for tensor in tensors
            ]
            for side, tensors in (("inputs", metadata.inputs), ("outputs", metadata.outputs))
        },
        "properties": dict(metadata.properties),
    }
    assert described == server.rest("GET", "/v2/models/perceptron").json


@pytest.mark.parametrize("make", [raw_message, features_message])
def test_infer(server: Server, model_directories: dict[str, ModelDirectory], make: Any) -> None:
    message = make(ROWS)
    message.id = "request 7"
    message.model_version = "1.0.0"
    response = server.grpc("ModelInfer", message)
    assert (response.model_name, response.model_version, response.id) == ("perceptron", "1.0.0", "request 7")
    assert response.parameters["model_digest"].string_param == model_directories["perceptron"].digest
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        ("scores", "FP32", [2, 3]),
        ("best", "INT64", [2]),
    ]
    scores = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(2, 3)
    np.testing.assert_allclose(scores, perceptron_scores(np.array(ROWS, dtype=np.float32)), rtol=1e-5)
    best = np.frombuffer(response.raw_output_contents[1], "<i8")
    assert best.tolist() == scores.argmax(axis=1).tolist()


def test_rest_and_grpc_answer_alike(server: Server) -> None:
    of_rest = server.infer("perceptron", features_request(ROWS)).json["outputs"][0]["data"]
    of_grpc = np.frombuffer(server.grpc("ModelInfer", raw_message(ROWS)).raw_output_contents[0], "<f4")
    assert np.array(of_rest, dtype="<f4").tobytes() == of_grpc.tobytes()


def test_requested_outputs_in_requested_order(server: Server) -> None:
    message = raw_message(ROWS)
    message.outputs.add(name="best")
    assert [output.name for output in server.grpc("ModelInfer", message).outputs] == ["best"]
    message.outputs.add(name="scores")
    response = server.grpc("ModelInfer", message)
    assert [output.name for output in response.outputs] == ["best", "scores"]
    assert [len(raw) for raw in response.raw_output_contents] == [16, 24]


@pytest.mark.parametrize("make", [raw_message, features_message])
@pytest.mark.parametrize("count", [0, 1, 5, 100_000])
def test_dynamic_dimension(server: Server, count: int, make: Any) -> None:
    response = server.grpc("ModelInfer", make([ROWS[0]] * count))
    assert list(response.outputs[0].shape) == [count, 3]
    assert len(response.raw_output_contents[0]) == count * 12


def changed(**fields: Any) -> messages.ModelInferRequest:
    message = raw_message([ROWS[0]])
    for name, value in fields.items():
        if name == "raw":
            del message.raw_input_contents[:]
            message.raw_input_contents.extend(value)
        elif name == "shape":
            message.inputs[0].shape[:] = value
        elif name in ("model_name", "model_version"):
            setattr(message, name, value)
        elif name == "outputs":
            for output in value:
                message.outputs.add(name=output)
        else:
            setattr(message.inputs[0], name, value)
    return message


def with_contents_beside_raw() -> messages.ModelInferRequest:
    message = raw_message([ROWS[0]])
    message.inputs[0].contents.fp32_contents.extend(ROWS[0])
    return message


def with_input_twice() -> messages.ModelInferRequest:
    message = features_message([ROWS[0]])
    message.inputs.append(message.inputs[0])
    return message


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (changed(model_name="other"), "NOT_FOUND", "model 'other' is not served here"),
        (changed(model_version="2.0.0"), "NOT_FOUND", "in version 1.0.0, not '2.0.0'"),
        (messages.ModelInferRequest(model_name="perceptron"), "INVALID_ARGUMENT", "needs input features"),
        (changed(name="colour"), "INVALID_ARGUMENT", "no input 'colour'"),
        (changed(datatype="FP64"), "INVALID_ARGUMENT", "datatype 'FP64', the model takes FP32"),
        (changed(shape=[4]), "INVALID_ARGUMENT", "the model takes [-1, 4]"),
        (changed(shape=[-1, 4]), "INVALID_ARGUMENT", "no size"),
        (changed(shape=[2**62, 4]), "RESOURCE_EXHAUSTED", "18446744073709551616 elements, at most 67108864"),
        (changed(raw=[b"123"]), "INVALID_ARGUMENT", "3 bytes, shape [1, 4] needs 16"),
        (changed(raw=[b"", b""]), "INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs"),
        (changed(raw=[]), "INVALID_ARGUMENT", "0 elements"),
        (changed(outputs=["colour"]), "INVALID_ARGUMENT", "no output 'colour'"),
        (changed(outputs=["best", "best"]), "INVALID_ARGUMENT", "more than once"),
        (with_contents_beside_raw(), "INVALID_ARGUMENT", "contents beside raw_input_contents"),
        (with_input_twice(), "INVALID_ARGUMENT", "more than once"),
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "not a ModelInferRequest"),
    ],
)
def test_wrong_inference(server: Server, message: Any, code: str, details: str) -> None:
    seen_code, seen_details = server.grpc_error("ModelInfer", message)
    assert seen_code == code
    assert details in seen_details


def test_wrong_model_elsewhere(server: Server) -> None:
    for method, request in (
        ("ModelReady", messages.ModelReadyRequest(name="other")),
        ("ModelMetadata", messages.ModelMetadataRequest(name="other")),
        ("ModelMetadata", messages.ModelMetadataRequest(name="perceptron", version="9.9.9")),
    ):
        assert server.grpc_error(method, request)[0] == "NOT_FOUND"
    assert server.grpc_error("ModelMetadata", b"\xff\xff\xff")[0] == "INVALID_ARGUMENT"


def test_message_limit(start_server: Any) -> None:
    server = start_server(limits={"body_bytes": 1000})
    server.wait_ready()
    assert server.grpc("ModelInfer", raw_message(ROWS)).model_name == "perceptron"
    assert server.grpc_error("ModelInfer", raw_message(ROWS * 100))[0] == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 60_000])
def test_large_raw_contents(server: Server, length: int) -> None:
    """Wherever in the message they are: a copy is made only where they are not aligned."""
    rows = np.random.default_rng(length).normal(size=(30_000, 4)).astype("<f4")
    small = server.grpc("ModelInfer", raw_message(rows[:100].tolist()))
    message = raw_message([])
    message.inputs[0].shape[:] = rows.shape
    message.raw_input_contents[:] = [rows.tobytes()]
    message.id = "a" * length
    for encoded in (
        message.SerializeToString(),
        b"".join(part.SerializeToString() for part in apart(message)),  # fields may come in any order
    ):
        large = server.grpc("ModelInfer", encoded)
        assert large.id == message.id
        assert large.raw_output_contents[1][: 100 * 8] == small.raw_output_contents[1]
        assert len(large.raw_output_contents[1]) == len(rows) * 8


def apart(message: messages.ModelInferRequest) -> list[messages.ModelInferRequest]:
    """The raw contents, then the rest."""
    rest = messages.ModelInferRequest()
    rest.CopyFrom(message)
    rest.ClearField("raw_input_contents")
    return [messages.ModelInferRequest(raw_input_contents=message.raw_input_contents), rest]


@pytest.mark.parametrize("damage", [b"\x3a\xff\xff\xff\x7f", b"\x3a\xff\xff\xff\xff\xff\xff\x01", b"\x3b", b"\xba"])
def test_large_message_that_is_none(server: Server, damage: bytes) -> None:
    message = raw_message([[0.0] * 4] * 10_000).SerializeToString()
    assert server.grpc_error("ModelInfer", message + damage)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("limits", [{}, {"body_bytes": 80_000_000}], ids=["refused", "allowed"])
def test_tensor_beyond_the_usual_limits(start_server: Any, limits: dict[str, int]) -> None:
    """75 MB are refused by name of the limit, and answered rightly where the configuration allows them."""
    server = start_server(limits=limits)
    rows = np.random.default_rng(75).normal(size=(75_000_000 // 16, 4)).astype("<f4")
    message = raw_message([])
    message.inputs[0].shape[:] = rows.shape
    message.raw_input_contents[:] = [rows.tobytes()]
    message.outputs.add(name="scores")
    described = {"name": "features", "shape": rows.shape, "datatype": "FP32"}
    inputs = [{**described, "parameters": {"binary_data_size": rows.nbytes}}]
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    server.wait_ready()
    answer = server.infer("perceptron", head + rows.tobytes(), Inference_Header_Content_Length=str(len(head)))
    if not limits:
        assert answer.status == 413
        assert "67108864 bytes" in answer.json["error"]
        code, told = server.grpc_error("ModelInfer", message)
        assert code == "RESOURCE_EXHAUSTED"
        assert "67108864 bytes" in told
        return
    scores = answer.body[int(answer.headers["inference-header-content-length"]) :]
    assert server.grpc("ModelInfer", message).raw_output_contents[0] == scores
    expected = perceptron_scores(rows)
    np.testing.assert_allclose(np.frombuffer(scores, "<f4").reshape(-1, 3), expected, rtol=1e-4, atol=1e-5)
