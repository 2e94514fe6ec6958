# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Every REST path, every way to ask wrongly."""

import gzip
import json
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import ModelDirectory, perceptron, perceptron_scores
from serving import Server, ask, features_request, steps_request

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -0.5, 0.25, -0.25]]


def test_live_and_ready(server: Server) -> None:
    assert server.rest("GET", "/v2/health/live").json == {"live": True}
    assert server.rest("GET", "/v2/health/ready").json == {"ready": True}


def test_server_metadata(server: Server) -> None:
    assert server.rest("GET", "/v2").json == {
        "name": "edgeml-runtime",
        "version": "0.1.0",
        "extensions": ["binary_tensor_data", "model_repository", "parameters", "schedule_policy", "sequence"],
    }


@pytest.mark.parametrize("path", ["/v2/models/perceptron", "/v2/models/perceptron/versions/1.0.0"])
def test_model_metadata(server: Server, model_directories: dict[str, ModelDirectory], path: str) -> None:
    answer = server.rest("GET", path)
    assert answer.json == {
        "name": "perceptron",
        "versions": ["1.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "best", "datatype": "INT64", "shape": [-1]},
        ],
        "properties": {"provider": "CPU"},
    }
    assert answer.headers["x-edgeml-model-digest"] == model_directories["perceptron"].digest


@pytest.mark.parametrize("path", ["/v2/models/perceptron/ready", "/v2/models/perceptron/versions/1.0.0/ready"])
def test_model_ready(server: Server, path: str) -> None:
    answer = server.rest("GET", path)
    assert (answer.status, answer.json) == (200, {"name": "perceptron", "ready": True})


@pytest.mark.parametrize("path", ["/v2/models/perceptron/infer", "/v2/models/perceptron/versions/1.0.0/infer"])
def test_infer(server: Server, model_directories: dict[str, ModelDirectory], path: str) -> None:
    answer = server.rest("POST", path, features_request(ROWS, id="request 7"))
    assert answer.status == 200
    assert answer.headers["x-edgeml-model-digest"] == model_directories["perceptron"].digest
    assert "inference-header-content-length" not in answer.headers
    document = answer.json
    scores = perceptron_scores(np.array(ROWS, dtype=np.float32))
    assert [document[key] for key in ("model_name", "model_version", "id")] == ["perceptron", "1.0.0", "request 7"]
    assert [(output["name"], output["datatype"], output["shape"]) for output in document["outputs"]] == [
        ("scores", "FP32", [2, 3]),
        ("best", "INT64", [2]),
    ]
    np.testing.assert_allclose(document["outputs"][0]["data"], scores.reshape(-1), rtol=1e-5)
    assert document["outputs"][1]["data"] == scores.argmax(axis=1).tolist()


def test_nested_data_means_the_same(server: Server) -> None:
    nested = features_request(ROWS)
    nested["inputs"][0]["data"] = ROWS
    assert server.infer("perceptron", nested).json == server.infer("perceptron", features_request(ROWS)).json


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_dynamic_dimension(server: Server, count: int) -> None:
    document = server.infer("perceptron", features_request([ROWS[0]] * count)).json
    expected = perceptron_scores(np.array([ROWS[0]] * count, dtype=np.float32).reshape(count, 4))
    assert document["outputs"][0]["shape"] == [count, 3]
    np.testing.assert_allclose(document["outputs"][0]["data"], expected.reshape(-1), rtol=1e-5)


def test_requested_outputs_in_requested_order(server: Server) -> None:
    asked = features_request(ROWS, outputs=[{"name": "best"}, {"name": "scores"}])
    assert [output["name"] for output in server.infer("perceptron", asked).json["outputs"]] == ["best", "scores"]
    asked = features_request(ROWS, outputs=[{"name": "best"}])
    assert [output["name"] for output in server.infer("perceptron", asked).json["outputs"]] == ["best"]


def binary_body(document: dict[str, Any], *tensors: bytes) -> tuple[bytes, str]:
    head = json.dumps(document).encode()
    return head + b"".join(tensors), str(len(head))


def test_binary_in_and_out(server: Server) -> None:
    features = np.array(ROWS, dtype="<f4")
    for padding in range(4):  # whatever the alignment of the tensor in the body
        asked = features_request(ROWS, id="i" * padding, parameters={"binary_data_output": True})
        del asked["inputs"][0]["data"]
        asked["inputs"][0]["parameters"] = {"binary_data_size": features.nbytes}
        body, length = binary_body(asked, features.tobytes())
        answer = server.infer("perceptron", body, Inference_Header_Content_Length=length)
        assert answer.status == 200, answer.body
        head = int(answer.headers["inference-header-content-length"])
        outputs = json.loads(answer.body[:head])["outputs"]
        assert [output["parameters"]["binary_data_size"] for output in outputs] == [2 * 3 * 4, 2 * 8]
        assert not any("data" in output for output in outputs)
        scores = np.frombuffer(answer.body, "<f4", count=6, offset=head)
        np.testing.assert_allclose(scores, perceptron_scores(features).reshape(-1), rtol=1e-5)
        assert np.frombuffer(answer.body, "<i8", offset=head + 24).size == 2


def test_binary_output_chosen_for_one(server: Server) -> None:
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "best"}]
    answer = server.infer("perceptron", features_request(ROWS, outputs=outputs))
    head = int(answer.headers["inference-header-content-length"])
    scores, best = json.loads(answer.body[:head])["outputs"]
    assert scores["parameters"] == {"binary_data_size": 24}
    assert len(best["data"]) == 2
    assert len(answer.body) == head + 24


def test_large_body_arrives_in_parts(server: Server) -> None:
    rows = [[float(index), 0.0, 1.0, 2.0] for index in range(40_000)]
    document = server.infer("perceptron", features_request(rows)).json
    expected = perceptron_scores(np.array(rows, dtype=np.float32)).reshape(-1)
    np.testing.assert_allclose(document["outputs"][0]["data"], expected, rtol=1e-4)


def test_connection_is_kept_after_an_error(server: Server) -> None:
    connection = server.connect()
    for body, status in ((b"{", 400), (json.dumps(features_request(ROWS)).encode(), 200)):
        connection.request("POST", "/v2/models/perceptron/infer", body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


def test_chunked_body(server: Server) -> None:
    connection = server.connect()
    body = json.dumps(features_request(ROWS)).encode()
    connection.request("POST", "/v2/models/perceptron/infer", iter([body[:20], body[20:]]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/", 404, "no such path: /"),
        ("GET", "/v3", 404, "no such path: /v3"),
        ("GET", "/v2/models/other", 404, "model 'other' is not served here"),
        ("GET", "/v2/models/other/ready", 404, "model 'other' is not served here"),
        ("POST", "/v2/models/other/infer", 404, "model 'other' is not served here"),
        ("GET", "/v2/models/perceptron/versions/2.0.0", 404, "in version 1.0.0, not '2.0.0'"),
        ("GET", "/v2/models/perceptron/infer", 405, "method GET is not allowed, POST is"),
        ("POST", "/v2/health/live", 405, "method POST is not allowed, GET is"),
        ("DELETE", "/v2/models/perceptron", 405, "method DELETE is not allowed, GET is"),
    ],
)
def test_wrong_path_or_method(server: Server, method: str, path: str, status: int, message: str) -> None:
    answer = server.rest(method, path, b"{}" if method == "POST" else None)
    assert answer.status == status
    assert message in answer.json["error"]
    assert ("allow" in answer.headers) == (status == 405)


def wrong_input(**changes: Any) -> dict[str, Any]:
    request = features_request([[1.0, 2.0, 3.0, 4.0]])
    request["inputs"][0].update(changes)
    return request


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        ({}, "'inputs' must be a list"),
        ({"inputs": []}, "needs input features"),
        ({"inputs": [1]}, "'inputs' must be a list of objects"),
        ({"inputs": "features"}, "'inputs' must be a list"),
        (wrong_input(name="colour"), "no input 'colour'; it takes features"),
        (wrong_input(name=None), "no input None"),
        (wrong_input(datatype="FP64"), "datatype 'FP64', the model takes FP32"),
        (wrong_input(datatype=7), "datatype 7, the model takes FP32"),
        (wrong_input(shape="1,4"), "'shape' must be a list"),
        (wrong_input(shape=[1, 4.0]), "no size"),
        (wrong_input(shape=[-1, 4]), "no size"),
        (wrong_input(shape=[True, 4]), "no size"),
        (wrong_input(shape=[2**64, 4]), "no size"),
        (wrong_input(shape=[4]), "the model takes [-1, 4]"),
        (wrong_input(shape=[1, 5]), "the model takes [-1, 4]"),
        (wrong_input(shape=[2, 4]), "4 elements, shape [2, 4] needs 8"),
        (wrong_input(data=None), "'data' must be a list"),
        (wrong_input(data=[1.0, 2.0, 3.0]), "3 elements"),
        (wrong_input(data=[1.0, 2.0, 3.0, "4"]), "not FP32"),
        (wrong_input(data=[1.0, 2.0, 3.0, []]), "not FP32"),
        (wrong_input(data=[1.0, 2.0, 3.0, True]), "not FP32"),
        (wrong_input(data=[1.0, 2.0, 3.0, 1e300]), "out of the range of FP32"),
        (wrong_input(data=[[1.0, 2.0], [3.0]]), "nested unevenly"),
        (wrong_input(data=[[1.0, 2.0], 3.0]), "nested unevenly"),
        (wrong_input(data=[[1.0, 2.0], [3.0, 4.0]]), "nested as [2, 2]"),
        (wrong_input(parameters=[]), "'parameters' must be an object"),
        (wrong_input(parameters={"binary_data_size": "4"}), "must be an integer"),
        (wrong_input(parameters={"binary_data_size": 16}), "both 'data' and"),
        ({**wrong_input(), "id": 7}, "'id' must be a string"),
        ({**wrong_input(), "outputs": [{"name": "colour"}]}, "no output 'colour'; it gives scores, best"),
        ({**wrong_input(), "outputs": [{"name": "best"}, {"name": "best"}]}, "more than once"),
        ({**wrong_input(), "outputs": {"name": "best"}}, "'outputs' must be a list"),
        ({**wrong_input(), "parameters": {"binary_data_output": 1}}, "true or false"),
        ({"inputs": wrong_input()["inputs"] * 2}, "more than once"),
    ],
)
def test_wrong_body(server: Server, body: bytes | dict[str, Any], message: str) -> None:
    answer = server.infer("perceptron", body)
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    ("size", "sent", "length", "message"),
    [
        (16, 16, "x", "not a number of bytes"),
        (16, 16, "-1", "not a number of bytes"),
        (16, 16, "1000000", "the JSON part is said to have 1000000 bytes"),
        (16, 12, None, "binary_data_size 16, 12 binary bytes are left"),
        (-1, 16, None, "binary_data_size -1"),
        (12, 12, None, "12 bytes, shape [1, 4] needs 16"),
        (16, 20, None, "4 binary bytes belong to no input"),
    ],
)
def test_wrong_binary_body(server: Server, size: int, sent: int, length: str | None, message: str) -> None:
    asked = features_request([[1.0, 2.0, 3.0, 4.0]])
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": size}
    body, right_length = binary_body(asked, b"\0" * sent)
    answer = server.infer("perceptron", body, Inference_Header_Content_Length=length or right_length)
    assert answer.status == 400
    assert message in answer.json["error"]


CODINGS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_bodies(server: Server, coding: str) -> None:
    for count in (1, 3000):  # on the event loop and on a thread
        asked = features_request(ROWS * count)
        plain = server.infer("perceptron", asked)
        body = CODINGS[coding](json.dumps(asked).encode())
        answer = server.infer("perceptron", body, Content_Encoding=coding, Accept_Encoding=f"br, {coding};q=0.5")
        assert answer.status == 200
        if count == 1:  # nothing to gain
            assert "content-encoding" not in answer.headers
            assert answer.json == plain.json
            continue
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "accept-encoding")
        assert len(answer.body) < len(plain.body)
        assert zlib.decompress(answer.body, 47) == plain.body


def test_compressed_binary_body(server: Server) -> None:
    features = np.array(ROWS * 1000, dtype="<f4")
    asked = features_request(ROWS * 1000, parameters={"binary_data_output": True})
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": features.nbytes}
    body, length = binary_body(asked, features.tobytes())
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": length, "Accept-Encoding": "gzip"}
    answer = server.rest("POST", "/v2/models/perceptron/infer", gzip.compress(body), headers)
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(answer.body)
    head = int(answer.headers["inference-header-content-length"])
    scores = np.frombuffer(plain, "<f4", count=6000, offset=head)
    np.testing.assert_allclose(scores, perceptron_scores(features).reshape(-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("coding", "body", "message"),
    [
        ("gzip", b"\x1f\x8b", "ends within its gzip data"),
        ("gzip", b"{}", "no gzip data"),
        ("deflate", b"{}", "no deflate data"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "the body is no gzip data"),
        ("gzip", gzip.compress(b"{}" * 9000, mtime=0)[:-9], "ends within its gzip data"),
        ("br", b"{}", "content-encoding 'br' is not supported; gzip and deflate are"),
        ("gzip, gzip", b"{}", "'gzip, gzip' is not supported"),
    ],
)
def test_wrong_compressed_body(server: Server, coding: str, body: bytes, message: str) -> None:
    answer = server.infer("perceptron", body, Content_Encoding=coding)
    assert answer.status == 400
    assert message in answer.json["error"]


def test_compression_bomb(start_server: Any) -> None:
    server = start_server(limits={"body_bytes": 2**20})
    server.wait_ready()
    status = Path(f"/proc/{server.process.pid}/status")

    def peak() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))

    bomb = gzip.compress(b" " * 2**29)
    server.infer("perceptron", gzip.compress(b" " * 2**20), Content_Encoding="gzip")
    before = peak()
    for _ in range(10):
        answer = server.infer("perceptron", bomb, Content_Encoding="gzip")
        assert answer.status == 413
        assert answer.json["error"] == "the decompressed body is larger than 1048576 bytes"
    assert peak() - before < 2**16  # kB; unpacked they were 5 GB


def test_engine_failure_is_an_internal_error(start_server: Any, tmp_path: Any) -> None:
    import onnx_models
    from onnx import TensorProto, helper

    # Shapes that fit the declaration, yet not each other: only the engine can tell.
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("a", "b")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        "sum",
        inputs,
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None])],
    )
    server = start_server([onnx_models.save(tmp_path, "sum", graph)])
    server.wait_ready()
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [size], "data": [1.0] * size} for name, size in (("a", 2), ("b", 3))
    ]
    answer = server.infer("sum", {"inputs": tensors})
    assert answer.status == 500
    assert answer.json["error"].startswith("the engine failed")
    tensors[1] = {"name": "b", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    assert server.infer("sum", {"inputs": tensors}).json["outputs"][0]["data"] == [2.0, 3.0]


def test_body_limit(start_server: Any) -> None:
    server = start_server(limits={"body_bytes": 1000})
    server.wait_ready()
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    long = json.dumps(features_request(ROWS * 100)).encode()
    answer = server.infer("perceptron", long)
    assert answer.status == 413
    assert answer.json["error"] == "the body is larger than 1000 bytes"
    connection = server.connect()
    connection.request("POST", "/v2/models/perceptron/infer", iter([long]), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    # Refused by its declared length alone, before any of it is sent.
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as raw:
        raw.sendall(b"POST /v2/models/perceptron/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_client_that_leaves_early_does_no_harm(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port)) as raw:
        raw.sendall(b"POST /v2/models/perceptron/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    assert ask(server.connect(), "GET", "/v2/health/live").status == 200
    assert "Traceback" not in server.log


def test_repository(start_server: Any, model_directories: dict[str, ModelDirectory], tmp_path: Path) -> None:
    server = start_server([model_directories["perceptron"], perceptron(tmp_path, "other")])
    server.wait_ready()
    index = "/v2/repository/index"
    both = [{"name": name, "version": "1.0.0", "state": "READY", "reason": ""} for name in ("other", "perceptron")]
    assert server.rest("POST", index).json == both
    assert (
        server.rest("POST", "/v2/repository/models/other/unload", {"parameters": {"unload_dependents": True}}).json
        == {}
    )
    assert server.infer("other", features_request(ROWS)).status == 503
    assert server.rest("GET", "/v2/models/other/ready").status == 503
    state = server.rest("POST", index, b"{}").json
    assert [(model["name"], model["state"]) for model in state] == [("other", "UNAVAILABLE"), ("perceptron", "READY")]
    assert "unloaded" in state[0]["reason"]
    assert server.rest("POST", index, {"ready": True}).json == both[1:]
    assert server.rest("POST", "/v2/repository/models/other/load").json == {}
    assert server.infer("other", features_request(ROWS)).status == 200
    for path, body, status, message in (
        (index, b"[]", 400, "must be a JSON object"),
        (index, {"ready": 1}, 400, "'ready' must be true or false"),
        ("/v2/repository/models/nothing/load", b"", 404, "'nothing'"),
        ("/v2/repository/models/nothing/unload", b"", 404, "'nothing'"),
        ("/v2/repository/models/other/load", {"parameters": {"config": "{}"}}, 400, "'config' is not supported"),
    ):
        answer = server.rest("POST", path, body)
        assert (answer.status, message in answer.json["error"]) == (status, True), answer.body
    assert server.rest("GET", index).status == 405


@pytest.mark.parametrize(
    ("limit", "body", "message"),
    [
        ("tensors", features_request(ROWS, outputs=[{"name": "best"}, {"name": "scores"}]), "2 tensors, at most 1"),
        ("elements", features_request(ROWS * 2), "16 elements, at most 8"),
        ("dimensions", features_request(ROWS), "2 dimensions, at most 1"),
    ],
)
def test_limits_of_tensors(start_server: Any, limit: str, body: dict[str, Any], message: str) -> None:
    most = {"tensors": 1, "elements": 8, "dimensions": 1}[limit]
    server = start_server(limits={limit: most})
    server.wait_ready()
    answer = server.infer("perceptron", body)
    assert (answer.status, answer.json["error"].endswith(" are allowed")) == (413, True)
    assert message in answer.json["error"]


def test_limit_of_strings(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server([model_directories["every_type"]], limits={"string_bytes": 3})
    server.wait_ready()
    tensor = {"name": "in_BYTES", "datatype": "BYTES", "shape": [1, 2], "data": ["abc", "\u00e4bc"]}
    answer = server.infer("every_type", {"inputs": [tensor]})
    assert answer.status == 413
    assert "an element has 4 bytes, at most 3 are allowed" in answer.json["error"]


def test_parameters(server: Server) -> None:
    ignored = {"priority": 3, "sequence_id": "", "timeout": 0, "anything": [1]}
    assert server.infer("perceptron", features_request(ROWS, parameters=ignored)).status == 200
    for wrong, message in (
        ({"timeout": -1}, "'timeout' is -1"),
        ({"timeout": 1.5}, "'timeout' is 1.5"),
        ({"sequence_id": 1.5}, "'sequence_id' is 1.5"),
        ({"sequence_id": 1, "sequence_start": 1}, "'sequence_start' is 1"),
        ({"sequence_end": True}, "without a sequence_id"),
    ):
        answer = server.infer("perceptron", features_request(ROWS, parameters=wrong))
        assert (answer.status, message in answer.json["error"]) == (400, True), answer.body
    slow = steps_request(10**6) | {"parameters": {"timeout": 50_000}}
    answer = server.infer("repeated_product", slow)
    assert (answer.status, answer.json["error"]) == (504, "model 'repeated_product' gave no answer within 0.05 s")


def test_request_log(start_server: Any) -> None:
    server = start_server(log_requests=True)
    server.wait_ready()
    server.infer("perceptron", features_request(ROWS, id="request 7"))
    server.infer("perceptron", b"{")
    server.infer("other", b"{}")
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    assert [(line["model"], line["version"], line["status"], line["id"]) for line in lines] == [
        ("perceptron", "1.0.0", "200", "request 7"),
        ("perceptron", "1.0.0", "400", ""),
        ("", "", "404", ""),
    ]
    assert lines[0]["protocol"] == "rest"
    assert lines[0]["client"].startswith("127.0.0.1:")
    assert 0 < lines[0]["compute_ms"] < lines[0]["total_ms"]
    assert lines[0]["queue_ms"] == 0
    assert lines[1]["compute_ms"] is None
