# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC beyond one request and one answer: streams, the repository, health, reflection, deadlines, limits, stopping."""

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import http2
import numpy as np
import pytest
from authority import Authority
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
from onnx_models import ModelDirectory, perceptron, perceptron_scores, repeated_product
from serving import SERVICE, Server, features_message, steps_message

ROWS = [[1.0, 2.0, 3.0, 4.0]]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def channel(server: Server) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.use_local_subchannel_pool", 1)])


class Stream:
    """A ModelStreamInfer call whose requests are sent one by one."""

    def __init__(self, opened: grpc.Channel, **options: Any) -> None:
        self._requests: queue.Queue[messages.ModelInferRequest | None] = queue.Queue()
        call = opened.stream_stream(
            SERVICE + "ModelStreamInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelStreamInferResponse.FromString,
        )
        self.call = call(iter(self._requests.get, None), timeout=60, **options)

    def send(self, message: messages.ModelInferRequest, request_id: str) -> None:
        message.id = request_id
        self._requests.put(message)

    def end(self) -> None:
        self._requests.put(None)

    def __next__(self) -> messages.ModelStreamInferResponse:
        response: messages.ModelStreamInferResponse = next(self.call)
        return response


@contextmanager
def stream(server: Server, **options: Any) -> Iterator[Stream]:
    with channel(server) as opened:
        opened_stream = Stream(opened, **options)
        try:
            yield opened_stream
        finally:
            opened_stream.end()


# -- streams -----------------------------------------------------------------------------------------------------------


def test_stream_answers_in_order(server: Server) -> None:
    count = 200
    with stream(server) as requests:
        for number in range(count):
            requests.send(features_message([[float(number), 0.0, 0.0, 0.0]]), str(number))
        requests.end()
        for number in range(count):
            response = next(requests)
            assert (response.error_message, response.infer_response.id) == ("", str(number))
            scores = np.frombuffer(response.infer_response.raw_output_contents[0], "<f4")
            expected = perceptron_scores(np.array([[number, 0, 0, 0]], dtype=np.float32))[0]
            np.testing.assert_allclose(scores, expected, rtol=1e-5)
        with pytest.raises(StopIteration):
            next(requests)
        assert requests.call.code() is grpc.StatusCode.OK


def test_long_stream_is_no_flood(server: Server) -> None:
    """Clients widen windows and ping as they receive: over thousands of answers of one stream that is no attack."""
    body = http2.message(features_message(ROWS).SerializeToString())
    updates = b"".join(http2.frame(8, 0, number, (1000).to_bytes(4, "big")) for number in (0, 1))
    more = updates + http2.frame(http2.PING, 0, 0, bytes(8))
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=60) as connection:
        received = connection.makefile("rb")
        connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        connection.sendall(http2.call(1, SERVICE + "ModelStreamInfer", body, 0))
        for _ in range(2500):
            while (frame := http2.read_frame(received))[0] != http2.DATA:
                assert frame[0] != http2.GOAWAY, frame
            connection.sendall(http2.frame(http2.DATA, 0, 1, body) + more)


def test_slow_request_of_a_stream_holds_up_no_computation_but_keeps_its_place(server: Server) -> None:
    with stream(server) as requests:
        requests.send(steps_message(20_000), "slow")
        requests.send(features_message(ROWS), "fast")
        assert [next(requests).infer_response.id for _ in range(2)] == ["slow", "fast"]


def test_answer_comes_before_the_next_request(server: Server) -> None:
    with stream(server) as requests:
        for number in range(3):
            requests.send(features_message(ROWS), str(number))
            assert next(requests).infer_response.id == str(number)


def test_error_does_not_end_a_stream(server: Server) -> None:
    wrong = features_message(ROWS)
    wrong.inputs[0].shape[:] = [3]
    with stream(server) as requests:
        requests.send(features_message(ROWS), "first")
        requests.send(wrong, "wrong")
        requests.send(messages.ModelInferRequest(model_name="other"), "other")
        requests.send(features_message(ROWS), "last")
        requests.end()
        responses = [next(requests) for _ in range(4)]
        assert [response.infer_response.id for response in responses] == ["first", "wrong", "other", "last"]
        errors = [response.error_message for response in responses]
        assert (errors[0], errors[3]) == ("", "")
        assert "the model takes [-1, 4]" in errors[1]
        assert errors[2] == "model 'other' is not served here"
        assert not responses[1].infer_response.outputs


def test_stream_that_is_cancelled_leaves_nothing_behind(start_server: Any, model_directories: Any) -> None:
    server = start_server(list(model_directories.values()))
    server.wait_ready()
    with stream(server) as requests:
        for number in range(10):
            requests.send(steps_message(10_000_000), str(number))
        eventually(lambda: under_way(server) > 0)
        requests.call.cancel()
        eventually(lambda: under_way(server) == 0)
    assert server.grpc("ModelInfer", steps_message(1)).model_name == "repeated_product"
    assert "Traceback" not in server.log


def under_way(server: Server) -> int:
    metrics = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    (line,) = [
        line for line in metrics.splitlines() if line.startswith("edgeml_inference_under_way{") and "prod" in line
    ]
    return int(float(line.split()[-1]))


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- repository --------------------------------------------------------------------------------------------------------


def index(server: Server, **fields: Any) -> list[tuple[str, str, str]]:
    response = server.grpc("RepositoryIndex", messages.RepositoryIndexRequest(**fields))
    return [(model.name, model.version, model.state) for model in response.models]


def test_repository(start_server: Any, model_directories: dict[str, ModelDirectory], tmp_path: Path) -> None:
    other = perceptron(tmp_path, "other")
    server = start_server([model_directories["perceptron"], other])
    server.wait_ready()
    assert index(server) == [("other", "1.0.0", "READY"), ("perceptron", "1.0.0", "READY")]
    server.grpc("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="other"))
    assert index(server) == [("other", "1.0.0", "UNAVAILABLE"), ("perceptron", "1.0.0", "READY")]
    assert index(server, ready=True) == [("perceptron", "1.0.0", "READY")]
    message = features_message(ROWS)
    message.model_name = "other"
    assert server.grpc_error("ModelInfer", message) == (
        "UNAVAILABLE",
        "model 'other' is not loaded: it was unloaded on request",
    )
    assert not server.grpc("ModelReady", messages.ModelReadyRequest(name="other")).ready
    server.grpc("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="other"))
    assert server.grpc("ModelInfer", message).model_name == "other"
    (other.path / "model.onnx").write_bytes(b"no model")
    code, details = server.grpc_error("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="other"))
    assert (code, "ONNX Runtime cannot load it" in details) == ("INVALID_ARGUMENT", True)
    assert server.grpc("ModelInfer", message).model_name == "other"


def test_repository_refuses_what_it_cannot_do(server: Server) -> None:
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        request = getattr(messages, f"{method}Request")(model_name="nothing")
        assert server.grpc_error(method, request)[0] == "NOT_FOUND"
    request = messages.RepositoryModelLoadRequest(model_name="perceptron")
    request.parameters["config"].string_param = "{}"
    code, details = server.grpc_error("RepositoryModelLoad", request)
    assert (code, "as it is configured at the server" in details) == ("INVALID_ARGUMENT", True)
    for method in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
        assert server.grpc_error(method, b"\xff\xff\xff")[0] == "INVALID_ARGUMENT"


# -- grants ------------------------------------------------------------------------------------------------------------


def test_grants(start_server: Any, tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> None:
    """Every method asks for a grant, for the grant's models, and for one that may manage."""
    for name in ("guest", "operator"):
        (tmp_path / name).write_text(f"token-of-{name}")
    access = [
        {"token_file": str(tmp_path / "guest"), "models": ["other"]},
        {"token_file": str(tmp_path / "operator"), "models": ["*"], "manage": True},
    ]
    server = start_server([model_directories["perceptron"], perceptron(tmp_path, "other")], access=access)
    server.wait_ready()
    nobody, guest, operator = ((), *((("authorization", f"Bearer token-of-{name}"),) for name in ("guest", "operator")))
    load = messages.RepositoryModelLoadRequest(model_name="other")
    unload = messages.RepositoryModelUnloadRequest(model_name="other")
    for method, request in (("RepositoryModelUnload", unload), ("RepositoryModelLoad", load)):
        assert server.grpc_error(method, request, metadata=nobody)[0] == "UNAUTHENTICATED"
        assert server.grpc_error(method, request, metadata=guest)[0] == "PERMISSION_DENIED"
        server.grpc(method, request, metadata=operator)
    everything = messages.RepositoryIndexRequest()
    assert server.grpc_error("RepositoryIndex", everything, metadata=nobody)[0] == "UNAUTHENTICATED"
    assert [model.name for model in server.grpc("RepositoryIndex", everything, metadata=guest).models] == ["other"]
    assert len(server.grpc("RepositoryIndex", everything, metadata=operator).models) == 2

    with channel(server) as opened:
        health = health_pb2_grpc.HealthStub(opened)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == SERVING
        for service, metadata, code in (
            ("other", nobody, "UNAUTHENTICATED"),
            ("perceptron", guest, "PERMISSION_DENIED"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                health.Check(health_pb2.HealthCheckRequest(service=service), metadata=metadata, timeout=60)
            assert refused.value.code().name == code
        assert (
            health.Check(health_pb2.HealthCheckRequest(service="other"), metadata=guest, timeout=60).status == SERVING
        )
        with pytest.raises(grpc.RpcError) as refused:
            list(reflect(opened, list_services=""))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    with stream(server) as requests, pytest.raises(grpc.RpcError) as refused:
        next(requests)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with stream(server, metadata=guest) as requests:
        allowed = features_message(ROWS)
        allowed.model_name = "other"
        requests.send(features_message(ROWS), "secret")
        requests.send(allowed, "other")
        assert next(requests).error_message == "this client may not use model 'perceptron'"
        assert next(requests).infer_response.model_name == "other"


def test_who_has_no_grant_is_told_before_its_body_has_come(start_server: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    server = start_server(bearer_token_file=str(tmp_path / "token"))
    server.wait_ready()
    never = threading.Event()

    def body() -> Iterator[bytes]:
        never.wait()
        yield b""

    with channel(server) as opened:
        call = opened.stream_unary(SERVICE + "ModelInfer", bytes, messages.ModelInferResponse.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            call(body(), timeout=60)
        never.set()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


# -- health ------------------------------------------------------------------------------------------------------------


def test_health(server: Server) -> None:
    with channel(server) as opened:
        health = health_pb2_grpc.HealthStub(opened)
        for service in ("", "inference.GRPCInferenceService", "perceptron", "every_type"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status == SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_watched_health_follows_the_models_and_the_server(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    with channel(server) as opened:
        health = health_pb2_grpc.HealthStub(opened)
        model = health.Watch(health_pb2.HealthCheckRequest(service="perceptron"), timeout=60)
        other = health.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        whole = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert [next(watched).status for watched in (model, other, whole)] == [SERVING, UNKNOWN, SERVING]
        server.grpc("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="perceptron"))
        assert next(model).status == NOT_SERVING
        server.grpc("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="perceptron"))
        assert next(model).status == SERVING
        assert server.stop() == 0
        assert next(whole).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(whole)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


# -- reflection --------------------------------------------------------------------------------------------------------


def reflect(opened: grpc.Channel, version: str = "v1alpha", **request: str) -> Any:
    call = opened.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    return call(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=60)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_all_that_a_call_needs(server: Server, version: str) -> None:
    """As grpcurl does: list the services, fetch the files of one, describe a method, call it by that."""
    with channel(server) as opened:
        (listed,) = reflect(opened, version, list_services="")
        names = {service.name for service in listed.list_services_response.service}
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
        (found,) = reflect(opened, version, file_containing_symbol="inference.GRPCInferenceService")
        pool = descriptor_pool.DescriptorPool()
        for file in found.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert {method.name for method in service.methods} >= {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"}
        method = service.methods_by_name["ModelInfer"]
        assert [field.name for field in method.input_type.fields] == [
            *("model_name", "model_version", "id", "parameters", "inputs", "outputs", "raw_input_contents")
        ]
        assert method.output_type.full_name == "inference.ModelInferResponse"
        (unknown,) = reflect(opened, version, file_containing_symbol="no.Such")
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_deadline_of_the_client_ends_the_run(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server(list(model_directories.values()))
    server.wait_ready()
    with channel(server) as opened:
        call = opened.unary_unary(
            SERVICE + "ModelInfer", messages.ModelInferRequest.SerializeToString, messages.ModelInferResponse.FromString
        )
        with pytest.raises(grpc.RpcError) as late:
            call(steps_message(10_000_000), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: under_way(server) == 0)
        future = call.future(steps_message(10_000_000), timeout=60)
        eventually(lambda: under_way(server) == 1)
        future.cancel()
        eventually(lambda: under_way(server) == 0)
    assert "Traceback" not in server.log


def test_timeout_parameter_is_in_microseconds(server: Server) -> None:
    message = steps_message(10_000_000)
    message.parameters["timeout"].int64_param = 200_000
    assert server.grpc_error("ModelInfer", message) == (
        "DEADLINE_EXCEEDED",
        "model 'repeated_product' gave no answer within 0.2 s",
    )


@pytest.mark.parametrize(
    ("name", "kind", "value", "details"),
    [
        ("timeout", "string_param", "soon", "not a number of microseconds"),
        ("timeout", "int64_param", -1, "not a number of microseconds"),
        ("sequence_id", "bool_param", True, "neither an integer nor a string"),
        ("sequence_start", "int64_param", 1, "neither true nor false"),
        ("sequence_end", "bool_param", True, "without a sequence_id"),
    ],
)
def test_wrong_parameter(server: Server, name: str, kind: str, value: Any, details: str) -> None:
    message = features_message(ROWS)
    setattr(message.parameters[name], kind, value)
    code, seen = server.grpc_error("ModelInfer", message)
    assert (code, details in seen) == ("INVALID_ARGUMENT", True), seen


def test_unknown_parameters_are_ignored(server: Server) -> None:
    message = features_message(ROWS)
    message.parameters["anything"].string_param = "at all"
    message.parameters["timeout"].int64_param = 0
    message.parameters["empty"].SetInParent()
    assert server.grpc("ModelInfer", message).model_name == "perceptron"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_of_tensors(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    limits = {"tensors": 2, "elements": 8, "dimensions": 2, "string_bytes": 5}
    server = start_server(list(model_directories.values()), limits=limits)
    server.wait_ready()

    def error(message: messages.ModelInferRequest) -> str:
        code, details = server.grpc_error("ModelInfer", message)
        assert code == "RESOURCE_EXHAUSTED"
        return str(details)

    assert server.grpc("ModelInfer", features_message(ROWS * 2)).model_name == "perceptron"
    assert "12 elements, at most 8 are allowed" in error(features_message(ROWS * 3))
    message = messages.ModelInferRequest(model_name="every_type")
    strings = message.inputs.add(name="in_BYTES", datatype="BYTES", shape=[1, 2])
    strings.contents.bytes_contents.extend([b"12345", "äöü".encode()])
    assert "an element has 6 bytes, at most 5 are allowed" in error(message)
    for _ in range(2):
        message.inputs.add()
    assert "3 tensors, at most 2 are allowed" in error(message)


def test_calls_over_the_limit_are_refused_and_live_still_answers(start_server: Any) -> None:
    server = start_server(limits={"connections": 4})  # of connections as well: two are kept, two are for single calls
    server.wait_ready()
    with channel(server) as first, channel(server) as second:
        kept = [Stream(opened) for opened in (first, first, second, second)]
        for number, requests in enumerate(kept):
            requests.send(features_message(ROWS), str(number))
            next(requests)
        assert server.grpc("ServerLive", messages.ServerLiveRequest()).live
        assert server.grpc("ServerReady", messages.ServerReadyRequest()).ready
        call = second.unary_unary(SERVICE + "ModelInfer", bytes, messages.ModelInferResponse.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            call(features_message(ROWS).SerializeToString(), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        for requests in kept:
            requests.end()
        for requests in kept:
            with pytest.raises(StopIteration):
                next(requests)
        assert call(features_message(ROWS).SerializeToString(), timeout=60).model_name == "perceptron"


def test_full_queue_tells_when_to_try_again(start_server: Any, tmp_path: Path) -> None:
    model = repeated_product(tmp_path, warm_up_steps=200)
    (model.path / "serving.json").write_text('{"queue": 0, "engine": {"parallel": 1}}')
    server = start_server([model])
    server.wait_ready()
    with channel(server) as opened:
        call = opened.unary_unary(
            SERVICE + "ModelInfer", messages.ModelInferRequest.SerializeToString, messages.ModelInferResponse.FromString
        )
        slow = call.future(steps_message(10_000_000), timeout=60)
        eventually(lambda: under_way(server) == 1)
        with pytest.raises(grpc.RpcError) as refused:
            call(steps_message(10_000_000), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert server.grpc("ServerLive", messages.ServerLiveRequest()).live
        slow.cancel()


# -- log ---------------------------------------------------------------------------------------------------------------


def test_one_line_per_request_when_asked(start_server: Any) -> None:
    server = start_server(log_requests=True)
    server.wait_ready()
    message = features_message(ROWS)
    message.id = "request 7"
    server.grpc("ModelInfer", message)
    server.grpc_error("ModelInfer", messages.ModelInferRequest(model_name="other"))
    with stream(server) as requests:
        requests.send(features_message(ROWS), "in a stream")
        next(requests)
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    seen = [(line["protocol"], line["model"], line["version"], line["status"], line["id"]) for line in lines]
    assert seen == [
        ("grpc", "perceptron", "1.0.0", "OK", "request 7"),
        ("grpc", "", "", "NOT_FOUND", ""),
        ("grpc", "perceptron", "1.0.0", "OK", "in a stream"),
    ]
    assert all(line["client"].startswith("127.0.0.1:") and line["total_ms"] > 0 for line in lines)


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_stop_finishes_a_stream_and_ends_it(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server(list(model_directories.values()), drain_seconds=60)
    server.wait_ready()
    with stream(server) as requests:
        requests.send(steps_message(100_000), "slow")
        eventually(lambda: under_way(server) == 1)
        server.process.terminate()
        assert next(requests).infer_response.id == "slow"
        with pytest.raises(grpc.RpcError) as ended:
            next(requests)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        # Long before the time to drain is over: an idle stream does not hold the server up.
        assert server.process.wait(240) == 0
    assert "Traceback" not in server.log


def test_stop_is_bounded(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server(list(model_directories.values()), drain_seconds=0.2)
    server.wait_ready()
    with channel(server) as opened:
        call = opened.unary_unary(
            SERVICE + "ModelInfer", messages.ModelInferRequest.SerializeToString, messages.ModelInferResponse.FromString
        )
        endless = call.future(steps_message(1_000_000_000), timeout=60)
        eventually(lambda: under_way(server) == 1)
        assert server.stop() == 0
        error = endless.exception(timeout=60)
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server stopped before the answer was computed",
        )


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_new_certificates_are_for_new_connections(start_server: Any, tmp_path: Path) -> None:
    for name in ("old", "new", "current"):
        (tmp_path / name).mkdir()
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    files = {name: tmp_path / "current" / name for name in ("certificate", "key", "client_ca")}

    def install(authority: Authority) -> None:
        for file, source in zip(files.values(), (authority.certificate, authority.key, authority.ca), strict=True):
            file.write_bytes(source.read_bytes())

    install(old)
    server = start_server(tls={name: str(file) for name, file in files.items()})
    server.wait_ready()
    target = f"127.0.0.1:{server.grpc_port}"
    with grpc.secure_channel(target, old.credentials(with_certificate=True)) as kept:
        call = kept.unary_unary(SERVICE + "ServerMetadata", bytes, messages.ServerMetadataResponse.FromString)
        assert call(b"", timeout=60).name == "edgeml-runtime"
        install(new)
        server.process.send_signal(1)
        eventually(lambda: "new TLS certificate" in server.log)
        request = messages.ServerMetadataRequest()
        credentials = new.credentials(with_certificate=True)
        assert server.grpc("ServerMetadata", request, credentials=credentials).name == "edgeml-runtime"
        with pytest.raises(grpc.RpcError):
            server.grpc("ServerMetadata", request, credentials=old.credentials(with_certificate=True))
        # The connection from before goes on.
        assert call(b"", timeout=60).name == "edgeml-runtime"
