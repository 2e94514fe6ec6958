# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients that others wrote, against a server process: tritonclient, KServe's clients, curl."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import running_sum
from onnx_models import ModelDirectory, perceptron
from serving import Server, features_request

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def server(model_directories: dict[str, ModelDirectory], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models may be unloaded: the shared ones, a second perceptron, and one with sequences."""
    directory = tmp_path_factory.mktemp("clients")
    summing = ModelDirectory("running_sum", Path(running_sum(directory)["path"]))
    running = Server.start(directory, [*model_directories.values(), perceptron(directory, "second"), summing])
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


@pytest.fixture(scope="session")
def python(pytestconfig: pytest.Config) -> Path:
    """The interpreter of the clients' environment, which is made when it is not there or not up to date."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        subprocess.run(["make", "build/environments/clients/installed"], cwd=ROOT, check=True, timeout=290)
    return ROOT / "build" / "environments" / "clients" / "bin" / "python"


def run(python: Path, script: str, *addresses: str) -> None:
    result = subprocess.run(
        [python, HERE / "clients" / script, *addresses], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_tritonclient_over_grpc(python: Path, server: Server) -> None:
    run(python, "triton_grpc.py", f"127.0.0.1:{server.grpc_port}")


def test_tritonclient_over_http(python: Path, server: Server) -> None:
    run(python, "triton_http.py", f"127.0.0.1:{server.rest_port}")


def test_clients_of_kserve(python: Path, server: Server) -> None:
    run(python, "kserve_clients.py", f"127.0.0.1:{server.rest_port}", f"127.0.0.1:{server.grpc_port}")


@pytest.fixture(scope="session")
def curl() -> str:
    """curl, from Debian's package when the machine lacks it."""
    if shutil.which("curl") is None:
        sudo = [] if shutil.which("sudo") is None else ["sudo"]
        subprocess.run([*sudo, "apt-get", "install", "--yes", "--quiet", "curl"], check=True, timeout=200)
    return "curl"


@pytest.mark.parametrize("over", ["TCP", "a unix socket"])
def test_curl(curl: str, server: Server, over: str, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{server.rest_port}"
    place = [] if over == "TCP" else ["--unix-socket", str(server.rest_socket)]

    def ask(path: str, *options: str) -> str:
        command = [curl, "--silent", "--show-error", "--fail-with-body", "--max-time", "60", *place, *options]
        return subprocess.run([*command, base + path], capture_output=True, text=True, check=True, timeout=90).stdout

    assert json.loads(ask("/v2/health/ready")) == {"ready": True}
    assert json.loads(ask("/v2"))["name"] == "edgeml-runtime"
    body = tmp_path / "request.json"
    body.write_text(json.dumps(features_request(ROWS)))
    infer = "/v2/models/perceptron/infer"
    answer = json.loads(ask(infer, "--data", f"@{body}"))
    assert [output["name"] for output in answer["outputs"]] == ["scores", "best"]
    # Chunks, and a question before the body is sent.
    for headers in (["Transfer-Encoding: chunked"], ["Expect: 100-continue"]):
        options = [option for header in headers for option in ("--header", header)]
        assert json.loads(ask(infer, "--data", f"@{body}", *options)) == answer
    # Two requests on one connection.
    twice = ask(infer, "--data", f"@{body}", base + infer)
    assert twice == json.dumps(answer, separators=(",", ":")) * 2
