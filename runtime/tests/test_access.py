# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What each client may do, and secrets and certificates that change while the server runs."""

import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import ModelDirectory, perceptron
from ports import free_port
from serving import Server, UnixConnection, ask, features_message, features_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
def two_models(tmp_path: Path) -> list[ModelDirectory]:
    return [perceptron(tmp_path, "public"), perceptron(tmp_path, "secret")]


def test_model_is_there_for_its_protocols_only(start_server: Any, two_models: list[ModelDirectory]) -> None:
    on_rest, on_grpc = (
        replace(model, protocols=(name,)) for model, name in zip(two_models, ("rest", "grpc"), strict=True)
    )
    server = start_server([on_rest, on_grpc])
    server.wait_ready()
    for model, status in ((on_rest, 200), (on_grpc, 404)):
        assert server.infer(model.name, features_request(ROWS)).status == status
        for path in ("", "/ready", "/versions/1.0.0", "/versions/1.0.0/ready"):
            assert server.rest("GET", f"/v2/models/{model.name}{path}").status == status
    assert [line["name"] for line in server.rest("POST", "/v2/repository/index").json] == ["public"]

    message = features_message(ROWS)
    for model, code in ((on_grpc, None), (on_rest, "NOT_FOUND")):
        message.model_name = model.name
        calls = [
            ("ModelInfer", message),
            ("ModelReady", messages.ModelReadyRequest(name=model.name)),
            ("ModelMetadata", messages.ModelMetadataRequest(name=model.name, version="1.0.0")),
        ]
        for method, request in calls:
            if code is None:
                server.grpc(method, request)
            else:
                assert server.grpc_error(method, request)[0] == code
    index = server.grpc("RepositoryIndex", messages.RepositoryIndexRequest())
    assert [line.name for line in index.models] == ["secret"]
    # The host's own checks, on a unix socket, reach them all.
    for model in (on_rest, on_grpc):
        assert server.unix("POST", f"/v2/models/{model.name}/infer", features_request(ROWS)).status == 200
    assert [line["name"] for line in server.unix("POST", "/v2/repository/index").json] == ["public", "secret"]


def tokens(directory: Path, **grants: list[str]) -> list[dict[str, object]]:
    """Entries of "access"; each name is the token as well."""
    entries = []
    for name, models in grants.items():
        (directory / name).write_text(f"token-of-{name}\n")
        entries.append({"token_file": str(directory / name), "models": models})
    return entries


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token-of-{name}"}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_token_is_good_for_its_models_only(start_server: Any, tmp_path: Path, two_models: list[ModelDirectory]) -> None:
    server = start_server(two_models, access=tokens(tmp_path, operator=["*"], guest=["public"]))
    server.wait_ready()
    body = features_request(ROWS)
    for name, model, status in (
        ("operator", "public", 200),
        ("operator", "secret", 200),
        ("guest", "public", 200),
        ("guest", "secret", 403),
        ("stranger", "public", 401),
    ):
        answer = server.rest("POST", f"/v2/models/{model}/infer", body, bearer(name))
        assert answer.status == status
        assert server.rest("GET", f"/v2/models/{model}", headers=bearer(name)).status == status
        assert server.rest("GET", f"/v2/models/{model}/ready", headers=bearer(name)).status == status
        metadata = (("authorization", bearer(name)["Authorization"]),)
        message = features_message(ROWS)
        message.model_name = model
        calls = (
            ("ModelInfer", message),
            ("ModelMetadata", messages.ModelMetadataRequest(name=model)),
            ("ModelReady", messages.ModelReadyRequest(name=model)),
        )
        for method, request in calls:
            if status == 200:
                server.grpc(method, request, metadata=metadata)
            else:
                code, _ = server.grpc_error(method, request, metadata=metadata)
                assert code == {403: "PERMISSION_DENIED", 401: "UNAUTHENTICATED"}[status]
    denied = server.rest("POST", "/v2/models/secret/infer", body, bearer("guest"))
    assert denied.json == {"error": "this client may not use model 'secret'"}
    # A model that does not exist looks like one that is not for this client.
    assert server.rest("POST", "/v2/models/nothing/infer", body, bearer("guest")).status == 403
    assert server.rest("POST", "/v2/models/nothing/infer", body, bearer("operator")).status == 404


def test_certificate_is_good_for_its_models_only(
    start_server: Any, tmp_path: Path, two_models: list[ModelDirectory]
) -> None:
    (tmp_path / "camera").mkdir()
    authority = Authority(tmp_path / "camera", client_name="camera-7")
    server = start_server(
        two_models,
        tls=authority.files | {"client_ca": str(authority.ca)},
        access=[{"certificate_name": "camera-7", "models": ["public"]}],
    )
    server.wait_ready()
    server.ssl = authority.context(with_certificate=True)
    credentials = authority.credentials(with_certificate=True)
    for model, status, code in (("public", 200, ""), ("secret", 403, "PERMISSION_DENIED")):
        assert server.rest("POST", f"/v2/models/{model}/infer", features_request(ROWS)).status == status
        message = features_message(ROWS)
        message.model_name = model
        if code:
            assert server.grpc_error("ModelInfer", message, credentials=credentials)[0] == code
        else:
            server.grpc("ModelInfer", message, credentials=credentials)


def test_another_certificate_of_the_same_authority_gets_nothing(start_server: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path, client_name="camera-8")
    server = start_server(
        tls=authority.files | {"client_ca": str(authority.ca)},
        access=[{"certificate_name": "camera-7", "models": ["*"]}],
    )
    server.wait_ready()
    server.ssl = authority.context(with_certificate=True)
    answer = server.rest("POST", "/v2/models/perceptron/infer", features_request(ROWS))
    assert (answer.status, answer.json) == (401, {"error": "a known certificate is required"})


def test_tokens_change_on_reload(start_server: Any, tmp_path: Path) -> None:
    server = start_server(access=tokens(tmp_path, operator=["*"]))
    server.wait_ready()

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return int(server.rest("POST", "/v2/models/perceptron/infer", features_request(ROWS), headers).status)

    assert status("token-of-operator") == 200
    (tmp_path / "operator").write_text("a-new-one")
    assert status("a-new-one") == 401
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: status("a-new-one") == 200)
    assert status("token-of-operator") == 401
    # A mistake leaves everything as it was, and is told without the secret.
    (tmp_path / "operator").write_text("two words")
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "token has spaces" in server.log)
    assert status("a-new-one") == 200
    assert "two words" not in server.log


def presented(server: Server, context: ssl.SSLContext, port: int) -> bytes | None:
    """The certificate that a port presents to a client that trusts anything."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=240) as tcp, context.wrap_socket(tcp) as tls:
        return tls.getpeercert(binary_form=True)


def test_certificates_change_while_clients_are_served(start_server: Any, tmp_path: Path) -> None:
    authorities = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        authorities.append(Authority(tmp_path / name))
    old, new = authorities
    files = {name: tmp_path / f"current-{name}" for name in ("certificate", "key", "client_ca")}

    def install(authority: Authority) -> None:
        files["certificate"].write_bytes(authority.certificate.read_bytes())
        files["key"].write_bytes(authority.key.read_bytes())
        files["client_ca"].write_bytes(authority.ca.read_bytes())

    install(old)
    server = start_server(tls={name: str(file) for name, file in files.items()})
    server.wait_ready()
    server.ssl = old.context(with_certificate=True)
    kept = server.connect()
    kept.request("GET", "/v2")
    assert kept.getresponse().read()

    # A certificate without its key changes nothing.
    files["certificate"].write_bytes(new.certificate.read_bytes())
    answer = ask(UnixConnection(server.admin_socket), "POST", "/reload")
    assert answer.status == 400
    assert "the old ones go on" in answer.json["error"]
    assert server.infer("perceptron", features_request(ROWS)).status == 200

    install(new)
    assert ask(UnixConnection(server.admin_socket), "POST", "/reload").status == 200
    der = ssl.PEM_cert_to_DER_cert(new.certificate.read_text())
    for port in (server.rest_port, server.metrics_port, server.grpc_port):
        assert presented(server, new.context(with_certificate=True), port) == der
    # Clients of the old authority are not known any more, those of the new one are.
    server.ssl = ssl.create_default_context(cafile=str(new.ca))
    server.ssl.load_cert_chain(old.client_certificate, old.client_key)
    with pytest.raises(OSError):
        server.rest("GET", "/v2")
    server.ssl = new.context(with_certificate=True)
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    credentials = new.credentials(with_certificate=True)
    assert server.grpc("ServerLive", messages.ServerLiveRequest(), credentials=credentials).live
    # A connection that was open before goes on.
    kept.request("GET", "/v2")
    assert kept.getresponse().status == 200


def test_open_listener_on_request_in_words(start_server: Any, tmp_path: Path) -> None:
    port = free_port()
    server = start_server(unprotected_listeners="allow", listen={"rest": [f"0.0.0.0:{port}"]})
    eventually(lambda: answers(server, port))


def answers(server: Server, port: int) -> bool:
    try:
        return server.rest("GET", "/v2", port=port).status == 200
    except OSError:
        return False
