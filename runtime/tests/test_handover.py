# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Candidate, active, draining: states, admin socket, signals, and ports that pass from one process to the next."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx_models import ModelDirectory, perceptron
from serving import Answer, Server, UnixConnection, ask, features_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]
SUPPORT = Path(__file__).parent / "support"


def admin(server: Server, method: str, path: str) -> Answer:
    return ask(UnixConnection(server.admin_socket), method, path)


def test_ports_pass_on_without_a_lost_request(model_directories: dict[str, ModelDirectory], tmp_path: Path) -> None:
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    model = json.dumps(model_directories["perceptron"].config)
    command = [*namespace, sys.executable, str(SUPPORT / "handover.py"), str(tmp_path), model]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    logs = {log.parent.name: log.read_text() for log in tmp_path.glob("*/server.log")}
    assert found["failures"] == [], logs
    assert set(found["exit_codes"]) == {0}, logs
    assert sum(found["answered"].values()) > 5000
    assert not any("Traceback" in log for log in logs.values()), logs


def test_candidate_listens_on_unix_sockets_only_until_activated(start_server: Any) -> None:
    server = start_server(arguments=["--candidate"])
    server.wait_ready()
    state = admin(server, "GET", "/state").json
    assert (state["state"], state["pid"]) == ("candidate", server.process.pid)
    assert state["models"] == [{"name": "perceptron", "version": "1.0.0", "state": "READY", "reason": ""}]
    assert server.unix("POST", "/v2/models/perceptron/infer", features_request(ROWS)).status == 200
    with pytest.raises(ConnectionRefusedError):
        server.rest("GET", "/v2/health/live")
    assert admin(server, "POST", "/activate").json["state"] == "active"
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    assert server.rest("GET", "/metrics", port=server.metrics_port).status == 200
    # Once more changes nothing.
    assert admin(server, "POST", "/activate").status == 200


def test_file_makes_a_candidate_of_a_start(start_server: Any, tmp_path: Path) -> None:
    mark = tmp_path / "candidate"
    mark.touch()
    server = start_server(arguments=["--candidate-file", str(mark)])
    server.wait_ready()
    assert admin(server, "GET", "/state").json["state"] == "candidate"
    assert server.stop() == 0
    mark.unlink()
    server = start_server(arguments=["--candidate-file", str(mark)])
    server.wait_ready()
    assert admin(server, "GET", "/state").json["state"] == "active"


def test_signals_do_the_same(start_server: Any) -> None:
    server = start_server(arguments=["--candidate"])
    server.wait_ready()
    server.process.send_signal(signal.SIGUSR1)
    server.wait(lambda: admin(server, "GET", "/state").json["state"] == "active")
    assert server.infer("perceptron", features_request(ROWS)).status == 200
    assert server.stop() == 0


def test_drain_ends_the_process(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    assert admin(server, "GET", "/state").json["state"] == "active"
    assert admin(server, "POST", "/drain").status == 202
    assert server.process.wait(240) == 0


def test_candidate_that_cannot_open_its_ports_stays_one(start_server: Any, server: Server) -> None:
    taken = {"rest": [f"192.0.2.1:{server.rest_port}"], "grpc": []}
    candidate = start_server(arguments=["--candidate"], more_listeners=taken, unprotected_listeners="allow")
    candidate.wait_ready()
    answer = admin(candidate, "POST", "/activate")
    assert answer.status == 400
    assert f"cannot listen on 192.0.2.1:{server.rest_port}" in answer.json["error"]
    assert answer.json["state"] == "candidate"
    assert candidate.unix("POST", "/v2/models/perceptron/infer", features_request(ROWS)).status == 200
    with pytest.raises(ConnectionRefusedError):
        candidate.rest("GET", "/v2/health/live")


@pytest.mark.parametrize("order", [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])  # noqa: S104
def test_ports_pass_on_when_the_address_changes(
    model_directories: dict[str, ModelDirectory], tmp_path: Path, order: tuple[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = []
    try:
        for name, address in zip(("old", "new"), order, strict=True):
            (tmp_path / name).mkdir()
            server = Server.start(
                tmp_path / name,
                [model_directories["perceptron"]],
                arguments=["--candidate"],
                more_listeners={"rest": [f"{address}:{port}"]},
                unprotected_listeners="allow",
            )
            servers.append(server)
            server.wait_ready()
            assert admin(server, "POST", "/activate").status == 200
        assert admin(servers[0], "POST", "/drain").status == 202
        assert servers[0].process.wait(240) == 0
        assert servers[1].rest("GET", "/v2/health/live", port=port).status == 200
    finally:
        for server in servers:
            server.end()


def test_other_requests_to_the_admin_socket(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    for method, path in (("GET", "/activate"), ("POST", "/state"), ("GET", "/v2")):
        assert admin(server, method, path).status == 404


def test_reload_follows_the_configuration(start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    server.wait_ready()
    other = perceptron(tmp_path, "other")
    assert server.infer("other", features_request(ROWS)).status == 404
    server.change_config(models=[other.config])
    assert admin(server, "POST", "/reload").status == 200
    assert server.infer("other", features_request(ROWS)).status == 200
    assert server.infer("perceptron", features_request(ROWS)).status == 404
    # What cannot be loaded leaves the rest as it was, and says why.
    (other.path / "model.onnx").write_bytes(b"no model")
    server.change_config(models=[other.config | {"digest": "sha256:" + "0" * 64}])
    answer = admin(server, "POST", "/reload")
    assert answer.status == 400
    assert "ONNX Runtime cannot load it" in answer.json["error"]
    assert server.infer("other", features_request(ROWS)).status == 200
    server.change_config(models=3)
    answer = admin(server, "POST", "/reload")
    assert (answer.status, "models: seen 3; allowed: a list" in answer.json["error"]) == (400, True)
    assert server.infer("other", features_request(ROWS)).status == 200
