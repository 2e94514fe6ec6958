# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A share of live requests with their answers, kept for whoever holds the admin socket."""

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.engine import sampling
from edgeml_runtime.errors import RequestError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.tensors import DTYPES
from in_process import InProcess, serving, settled
from onnx_models import perceptron, perceptron_scores
from python_models import python_model, values_request
from serving import Answer, Server, UnixConnection, ask, features_message, features_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]
VALUES = [7654321.5, 0.0, -1.0]
ALL = {"share": 1, "requests": 100, "seconds": 3600}


def admin(server: Server, method: str, path: str, body: object = None) -> Answer:
    return ask(UnixConnection(server.admin_socket), method, path, None if body is None else json.dumps(body))


def counts(server: Server, model: str = "perceptron") -> dict[str, Any]:
    return dict(admin(server, "GET", "/sample").json["models"][model])


def taken(server: Server) -> dict[str, Any]:
    """Take the next one; tensors by name as arrays."""
    answer = admin(server, "POST", "/sample/next")
    length = answer.headers.get("inference-header-content-length")
    document: dict[str, Any] = json.loads(answer.body[: int(length)] if length else answer.body)
    raw = answer.body[int(length or 0) :]
    for key in ("inputs", "outputs"):
        tensors = {}
        for tensor in document.get(key, ()):
            content, raw = raw[: tensor["bytes"]], raw[tensor["bytes"] :]
            tensors[tensor["name"]] = np.frombuffer(content, DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
        document[key] = tensors
    return document


def ask_by(server: Server, protocol: str, rows: list[list[float]]) -> None:
    if protocol == "grpc":
        server.grpc("ModelInfer", features_message(rows))
    else:
        assert server.infer("perceptron", features_request(rows)).status == 200


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_requests_are_kept_with_their_answers(start_server: Any, protocol: str) -> None:
    server = start_server()
    server.wait_ready()
    ask_by(server, protocol, ROWS)
    assert admin(server, "GET", "/sample").json == {"models": {}}
    assert admin(server, "POST", "/sample", {"perceptron": ALL}).status == 200
    for value in VALUES:
        ask_by(server, protocol, [[value] * 4])
    assert counts(server) == {"open": True, "seen": 3, "kept": 3, "dropped": 0}
    for value in VALUES:
        sampled = taken(server)
        assert (sampled["model"], sampled["version"]) == ("perceptron", "1.0.0")
        features = np.full((1, 4), value, np.float32)
        assert np.array_equal(sampled["inputs"]["features"], features)
        np.testing.assert_allclose(sampled["outputs"]["scores"], perceptron_scores(features), rtol=1e-5)
    assert admin(server, "POST", "/sample/next").json == {}
    # Nobody asks for a model: that ends it.
    assert admin(server, "POST", "/sample", {}).status == 200
    ask_by(server, protocol, ROWS)
    assert admin(server, "GET", "/sample").json == {"models": {}}
    assert str(VALUES[0]) not in server.log


def test_it_ends_with_the_last_request_that_is_wanted(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    admin(server, "POST", "/sample", {"perceptron": {**ALL, "requests": 2}})
    for _ in range(5):
        ask_by(server, "rest", ROWS)
    assert counts(server) == {"open": False, "seen": 2, "kept": 2, "dropped": 0}


def test_it_ends_with_its_time(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    admin(server, "POST", "/sample", {"perceptron": {**ALL, "seconds": 0}})
    server.wait(lambda: not counts(server)["open"])
    ask_by(server, "rest", ROWS)
    assert counts(server) == {"open": False, "seen": 0, "kept": 0, "dropped": 0}


def test_only_a_share_is_kept(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    admin(server, "POST", "/sample", {"perceptron": {**ALL, "share": 0.5}})
    for _ in range(64):
        ask_by(server, "rest", ROWS)
    assert 0 < counts(server)["kept"] < 64  # all or none: 1 in 10^19
    assert counts(server)["dropped"] == 0


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"perceptron": {**ALL, "share": 2}}, "perceptron.share: seen 2; allowed: a number from 0 to 1"),
        ({"perceptron": {**ALL, "part": 1}}, "perceptron.part: seen an unknown key"),
        ({"perceptron": {"share": 1}}, "no such key"),
        ([], "must be a JSON object"),
        ({"other": ALL}, "model 'other' is not served here"),
    ],
)
def test_a_wrong_wish_changes_nothing(start_server: Any, body: object, seen: str) -> None:
    server = start_server()
    server.wait_ready()
    admin(server, "POST", "/sample", {"perceptron": ALL})
    answer = admin(server, "POST", "/sample", body)
    assert answer.status in (400, 404)
    assert seen in answer.json["error"]
    assert counts(server)["open"]


def test_what_a_model_changes_later_is_kept_as_it_was(start_server: Any, tmp_path: Path) -> None:
    code = """
        import numpy

        result = numpy.zeros(1, numpy.float32)

        def infer(inputs):
            values = inputs["values"]
            result[:] = 2 * values
            if values.flags.writeable:
                values[:] = 0
            return {"result": result}
    """
    server = start_server([python_model(tmp_path, "double", code)])
    server.wait_ready()
    admin(server, "POST", "/sample", {"double": ALL})
    for value in VALUES:
        assert server.infer("double", values_request(value)).json["outputs"][0]["data"] == [2 * value]
    for value in VALUES:
        sampled = taken(server)
        assert (sampled["inputs"]["values"], sampled["outputs"]["result"]) == (value, 2 * value)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sampling, "MOST_BYTES", 400)
    monkeypatch.setattr(sampling, "MOST_WAITING", 200)
    with serving(perceptron(tmp_path).config) as server:
        yield server


def infer(server: InProcess, model: str, body: dict[str, Any]) -> None:
    assert ask(HTTPConnection("127.0.0.1", server.rest_port), "POST", f"/v2/models/{model}/infer", body).status == 200


def test_what_has_no_room_is_dropped(in_process: InProcess) -> None:
    """Room comes back when somebody takes what is kept, until all copies together have had what they may."""

    async def begin() -> sampling.Sampling:
        sampled = sampling.Sampling(in_process.engine)
        sampled.start({"perceptron": {**ALL}})
        return sampled

    async def take() -> object:
        return sampled.take()

    sampled = in_process.run(begin())
    infer(in_process, "perceptron", features_request(ROWS * 20))
    assert sampled.counts()["perceptron"] == {"open": True, "seen": 1, "kept": 0, "dropped": 1}
    kept = []
    for _ in range(4):
        for _ in range(20):
            infer(in_process, "perceptron", features_request(ROWS))
        kept.append(sampled.counts()["perceptron"]["kept"])
        while in_process.run(take()) is not None:
            pass
    # The first time as many as may wait, then what is left of all that may be kept, then none.
    assert 0 < kept[0] < kept[1] <= kept[2] == kept[3] < 3 * kept[0]
    assert sampled.counts()["perceptron"] == {"open": True, "seen": 81, "kept": kept[3], "dropped": 81 - kept[3]}


def test_a_request_without_an_answer_takes_no_room(in_process: InProcess) -> None:
    async def fail() -> sampling.Sampling:
        sampled = sampling.Sampling(in_process.engine)
        sampled.start({"perceptron": {**ALL}})
        model = in_process.engine.model("perceptron", "")
        wrong = InferenceRequest("", {"features": np.zeros((1, 5), np.float32)}, list(model.outputs))
        for _ in range(20):
            with pytest.raises(RequestError):
                await model.infer(wrong)
        return sampled

    sampled = in_process.run(fail())
    infer(in_process, "perceptron", features_request(ROWS))
    assert sampled.counts()["perceptron"] == {"open": True, "seen": 21, "kept": 1, "dropped": 0}


def test_what_nobody_asks_for_is_forgotten(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_IDLE_SECONDS", 0.0)

    async def begin() -> sampling.Sampling:
        sampled = sampling.Sampling(in_process.engine)
        sampled.start({"perceptron": {**ALL, "seconds": 0.01}})
        return sampled

    sampled = in_process.run(begin())
    assert settled(lambda: sampled.counts() == {})
    infer(in_process, "perceptron", features_request(ROWS))
    assert sampled.counts() == {}
