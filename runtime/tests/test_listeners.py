# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Unix sockets, TLS, client certificates and bearer tokens."""

import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from authority import Authority
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from onnx_models import ModelDirectory
from ports import free_port
from serving import Server, UnixConnection, ask, features_message, features_request

SUPPORT = Path(__file__).parent / "support"
ROWS = [[1.0, 2.0, 3.0, 4.0]]
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def test_unix_sockets(server: Server) -> None:
    over_unix = server.unix("POST", "/v2/models/perceptron/infer", features_request(ROWS))
    assert over_unix.json == server.infer("perceptron", features_request(ROWS)).json
    response = server.grpc("ModelInfer", features_message(ROWS), target=f"unix:{server.grpc_socket}")
    assert response.model_name == "perceptron"
    for path in (server.rest_socket, server.grpc_socket):
        assert path.stat().st_mode & 0o777 == 0o660


def test_several_listeners_of_a_kind(start_server: Any, tmp_path: Path) -> None:
    sockets = [tmp_path / f"{index}.sock" for index in range(4)]
    names = [f"unix:{path}" for path in sockets]
    server = start_server(listen={"rest": [f"unix:{tmp_path}/rest.sock", *names[:2]], "grpc": names[2:]})
    server.wait_ready()
    for path in sockets[:2]:
        assert ask(UnixConnection(path), "GET", "/v2/health/ready").status == 200
    for name in names[2:]:
        assert server.grpc("ServerReady", messages.ServerReadyRequest(), target=name).ready


def test_left_socket_files_are_replaced_and_own_ones_removed(start_server: Any, tmp_path: Path) -> None:
    for name in ("rest.sock", "grpc.sock"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    server = start_server()
    server.wait_ready()
    assert server.grpc("ServerLive", messages.ServerLiveRequest(), target=f"unix:{server.grpc_socket}").live
    assert server.stop() == 0
    assert not server.rest_socket.exists()
    assert not server.grpc_socket.exists()


@pytest.mark.parametrize("name", ["rest.sock", "grpc.sock"])
def test_socket_file_in_use_is_left_alone(start_server: Any, tmp_path: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / name))
        other.listen()
        server = start_server()
        assert server.process.wait(240) == 1
        assert "another process listens there" in server.log
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["rest.sock", "grpc.sock"])
def test_other_file_in_place_of_a_socket_is_left_alone(start_server: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    server = start_server()
    assert server.process.wait(240) == 1
    assert "is no socket" in server.log
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("kind", ["rest", "grpc", "metrics"])
def test_port_in_use(start_server: Any, server: Server, kind: str) -> None:
    taken = getattr(server, f"{kind}_port")
    listen = {"rest": [f"127.0.0.1:{free_port()}"]} | {kind: [f"127.0.0.1:{taken}"]}
    second = start_server(listen=listen)
    assert second.process.wait(240) == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in second.log
    assert "Traceback" not in second.log


def test_tls(start_server: Any, authority: Authority) -> None:
    server = start_server(tls=authority.files)
    server.wait_ready()
    clear = server.connect()
    clear.request("GET", "/v2/health/live")
    with pytest.raises(OSError):
        clear.getresponse()
    with pytest.raises(grpc.RpcError):
        server.grpc("ServerLive", messages.ServerLiveRequest())
    server.ssl = authority.context()
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    assert server.rest("GET", "/metrics", port=server.metrics_port).status == 200
    credentials = authority.credentials()
    assert server.grpc("ModelInfer", features_message(ROWS), credentials=credentials).model_name == "perceptron"
    # Unix sockets stay in clear.
    assert server.unix("POST", "/v2/models/perceptron/infer", features_request(ROWS)).status == 200


def test_old_tls_is_refused(start_server: Any, authority: Authority) -> None:
    server = start_server(tls=authority.files)
    server.wait_ready()
    context = authority.context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.deprecated_call():
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    server.ssl = context
    with pytest.raises(OSError):
        server.rest("GET", "/v2/health/live")


def test_client_certificate(start_server: Any, authority: Authority) -> None:
    server = start_server(tls=authority.files | {"client_ca": str(authority.ca)})
    server.wait_ready()
    server.ssl = authority.context()
    with pytest.raises(OSError):
        server.rest("GET", "/v2/health/live")
    with pytest.raises(grpc.RpcError):
        server.grpc("ServerLive", messages.ServerLiveRequest(), credentials=authority.credentials())
    server.ssl = authority.context(with_certificate=True)
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    credentials = authority.credentials(with_certificate=True)
    assert server.grpc("ModelInfer", features_message(ROWS), credentials=credentials).model_name == "perceptron"


def test_bearer_token(start_server: Any, authority: Authority, token_file: Path) -> None:
    server = start_server(tls=authority.files, bearer_token_file=str(token_file))
    server.wait_ready()
    server.ssl = authority.context()
    body = features_request(ROWS)
    for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for method, path in (
            ("POST", "/v2/models/perceptron/infer"),
            ("GET", "/v2"),
            ("GET", "/v2/models/perceptron"),
            ("GET", "/v2/models/perceptron/ready"),
            ("GET", "/v2/models/other"),
            ("GET", "/elsewhere"),
        ):
            answer = server.rest(method, path, body if method == "POST" else None, wrong)
            assert (answer.status, answer.json) == (401, {"error": "a valid bearer token is required"})
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.rest("GET", "/metrics", headers=wrong, port=server.metrics_port).status == 401
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert server.rest("POST", "/v2/models/perceptron/infer", body, right).status == 200
    assert server.rest("GET", "/v2", headers=right).status == 200
    assert server.rest("GET", "/metrics", headers=right, port=server.metrics_port).status == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert server.rest("GET", path).status == 200
    # Their permissions protect unix sockets.
    assert server.unix("POST", "/v2/models/perceptron/infer", body).status == 200
    assert TOKEN not in server.log


def test_bearer_token_grpc(start_server: Any, authority: Authority, token_file: Path) -> None:
    server = start_server(tls=authority.files, bearer_token_file=str(token_file))
    server.wait_ready()
    credentials = authority.credentials()
    model = messages.ModelMetadataRequest(name="perceptron")
    guarded = (
        ("ModelInfer", features_message(ROWS)),
        ("ModelMetadata", model),
        ("ModelReady", messages.ModelReadyRequest(name="perceptron")),
        ("ServerMetadata", messages.ServerMetadataRequest()),
    )
    for method, request in guarded:
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            code, _ = server.grpc_error(method, request, credentials=credentials, metadata=metadata)
            assert code == "UNAUTHENTICATED"
        server.grpc(method, request, credentials=credentials, metadata=(("authorization", f"Bearer {TOKEN}"),))
        server.grpc(method, request, target=f"unix:{server.grpc_socket}")
    assert server.grpc("ServerLive", messages.ServerLiveRequest(), credentials=credentials).live
    assert server.grpc("ServerReady", messages.ServerReadyRequest(), credentials=credentials).ready


def test_certificate_without_its_key(start_server: Any, authority: Authority, tmp_path: Path) -> None:
    files = authority.files | {"key": str(authority.client_key)}
    server = start_server(tls=files)
    assert server.process.wait(240) == 1
    assert "tls.certificate" in server.log
    assert "Traceback" not in server.log


def test_an_address_that_comes_after_the_server(model_directories: dict[str, ModelDirectory], tmp_path: Path) -> None:
    """As at a board's start: the release serves as soon as the address is there, and is not restarted for it."""
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    model = json.dumps(model_directories["perceptron"].config)
    command = [*namespace, sys.executable, str(SUPPORT / "late_address.py"), str(tmp_path), model]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads(result.stdout)
    assert told["before"] == [0, 0]
    assert told["after"] == [200, 200], result.stderr[-3000:]
    assert told["exit"] == 0
    # A person's mistake is still told, and so is a port that somebody holds.
    assert "cannot listen on 192.0.2.7:8000" in told["by hand"]
    assert "cannot listen on " in told["taken"]
