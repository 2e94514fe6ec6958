# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""``edgeml-runtime check`` and ``models`` against real servers."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from edgeml_runtime.cli.arguments import parser
from edgeml_runtime.cli.check import Check, Plan, Report, as_text, check_server
from edgeml_runtime.cli.command import COMMANDS
from edgeml_runtime.client.connect import parse_target
from edgeml_runtime.client.grpc import GrpcClient
from edgeml_runtime.client.protocol import Access
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from edgeml_runtime.errors import ConfigurationError
from engines import running_sum
from onnx_models import ModelDirectory
from serving import Server

ACCESS = Access(ca=None, certificate=None, key=None, token=None, timeout=30)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def plan(*models: str, golden: Path | None = None, p95_ms: float | None = None) -> Plan:
    files = sorted(golden.glob("golden/*.json")) if golden else []
    return Plan([(name, "") for name in models], {"": files}, p95_ms, samples=7, warmup=1, seconds=10)


def check(url: str, what: Plan, access: Access = ACCESS) -> Report:
    return check_server(parse_target(url), access, what)


def urls(server: Server) -> dict[str, str]:
    return {
        "rest": f"http://127.0.0.1:{server.rest_port}",
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}",
        "rest on a socket": f"unix:{server.rest_socket}",
        "grpc on a socket": f"grpc+unix:{server.grpc_socket}",
    }


def outcomes(report: Report) -> dict[str, bool]:
    return {f"{check.model} {check.check}".lstrip(): check.ok for check in report.checks}


def failed(report: Report) -> Check:
    """The only check that failed."""
    (check,) = (check for check in report.checks if not check.ok)
    return check


@pytest.fixture
def case(model_directories: dict[str, ModelDirectory], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A golden case of the perceptron to change, and where to write it."""
    (tmp_path / "golden").mkdir()
    text = (model_directories["perceptron"].path / "golden" / "first.json").read_text()
    return tmp_path / "golden" / "changed.json", json.loads(text)


@pytest.mark.parametrize("way", ["rest", "grpc", "rest on a socket", "grpc on a socket"])
def test_all_checks(server: Server, model_directories: dict[str, ModelDirectory], way: str) -> None:
    report = check(urls(server)[way], plan("perceptron", golden=model_directories["perceptron"].path, p95_ms=60_000))
    names = ["ready", "metadata", "golden first.json", "latency"]
    assert outcomes(report) == dict.fromkeys(
        ["live", "ready", "metadata", *(f"perceptron {name}" for name in names)], True
    )
    assert (report.ok, report.reachable) == (True, True)
    golden, latency = report.checks[-2:]
    assert golden.values["largest_error"] < 1e-6
    assert latency.values["samples"] == 7
    assert 0 < latency.values["p50_ms"] <= latency.values["p95_ms"] <= latency.values["p99_ms"]


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_every_datatype(server: Server, tmp_path: Path, way: str) -> None:
    """What goes out comes back, in JSON's and numpy's own ranges."""
    values = {
        "BOOL": [True, False],
        "UINT8": [0, 255],
        "UINT16": [0, 65535],
        "UINT32": [0, 2**32 - 1],
        "UINT64": [0, 2**64 - 1],
        "INT8": [-128, 127],
        "INT16": [-(2**15), 2**15 - 1],
        "INT32": [-(2**31), 2**31 - 1],
        "INT64": [-(2**63), 2**63 - 1],
        "FP16": [0.5, -2.0],
        "FP32": [0.1, -1e30],
        "FP64": [0.1, -1e300],
        "BYTES": ["", "grün"],
    }
    sides = {
        side: [
            {"name": f"{prefix}_{name}", "datatype": name, "shape": [1, 2], "data": data}
            for name, data in values.items()
        ]
        for side, prefix in (("inputs", "in"), ("outputs", "out"))
    }
    (tmp_path / "golden").mkdir()
    file = tmp_path / "golden" / "all.json"
    file.write_text(json.dumps(sides))
    assert check(urls(server)[way], plan("every_type", golden=tmp_path)).ok
    sides["outputs"][-1]["data"] = ["", "gruen"]
    file.write_text(json.dumps(sides))
    wrong = failed(check(urls(server)[way], plan("every_type", golden=tmp_path)))
    assert wrong.check == "golden all.json"
    assert wrong.detail == "output 'out_BYTES' is grün at [0, 1], expected gruen"
    assert wrong.values == {"largest_error": None}


@pytest.fixture
def plain_url(server: Server) -> Iterator[str]:
    """The REST server behind a proxy that has no binary extension and is never ready, as it says in the body."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            assert "inference-header-content-length" not in self.headers
            answer = server.rest(self.command, self.path, self.rfile.read(length))
            body = answer.body
            if self.path == "/v2":
                body = json.dumps({**answer.json, "extensions": []}).encode()
            if self.path == "/v2/health/ready":
                body = b'{"ready": false}'
            self.send_response(answer.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


def test_a_server_of_json_alone(plain_url: str, model_directories: dict[str, ModelDirectory]) -> None:
    report = check(plain_url, plan("perceptron", "every_type", golden=None))
    assert failed(report) == Check("", "ready", False, "the server says that it is not")
    golden = check(plain_url, plan("perceptron", golden=model_directories["perceptron"].path))
    assert outcomes(golden)["perceptron golden first.json"]


def test_typed_contents() -> None:
    """Some servers answer without raw contents."""
    response = messages.ModelInferResponse()
    response.outputs.add(name="a", datatype="INT8", shape=[2]).contents.int_contents.extend([-1, 2])
    response.outputs.add(name="b", datatype="BYTES", shape=[1]).contents.bytes_contents.append("grün".encode())
    client = GrpcClient(parse_target("grpc://127.0.0.1:1"), ACCESS)
    outputs = client.decode(response.SerializeToString())
    client.close()
    assert {name: output.tolist() for name, output in outputs.items()} == {"a": [-1, 2], "b": ["grün"]}


def test_a_model_with_sequences(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """A case's parameters go with the request."""
    (tmp_path / "models").mkdir()
    entry = running_sum(tmp_path / "models")
    server = start_server([ModelDirectory("running_sum", Path(entry["path"]))])
    server.wait_ready()
    (file,) = Path(entry["path"]).glob("golden/*.json")
    golden = plan("running_sum", golden=Path(entry["path"]))
    for way in ("rest", "grpc"):
        assert "sequence_id is required" in failed(check(urls(server)[way], golden)).detail
    ends = {"sequence_id": 7, "sequence_start": True, "sequence_end": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "parameters": ends}))
    for way in ("rest", "grpc"):
        assert check(urls(server)[way], golden).ok


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_a_wrong_answer(server: Server, case: tuple[Path, dict[str, Any]], way: str) -> None:
    file, document = case
    document["outputs"][0]["data"][1] += 0.5
    file.write_text(json.dumps(document))
    report = check(urls(server)[way], plan("perceptron", golden=file.parent.parent))
    wrong = failed(report)
    assert wrong.check == "golden changed.json"
    assert "output 'scores' is 0.333" in wrong.detail
    assert wrong.values["largest_error"] == pytest.approx(0.5, abs=1e-6)
    assert "FAILED  output 'scores'" in as_text(report)


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_a_case_that_the_model_refuses(server: Server, case: tuple[Path, dict[str, Any]], way: str) -> None:
    file, document = case
    document["inputs"][0]["name"] = "other"
    file.write_text(json.dumps(document))
    report = check(urls(server)[way], plan("perceptron", golden=file.parent.parent))
    golden = next(check for check in report.checks if check.check == "golden changed.json")
    assert not golden.ok
    assert "has no input 'other'" in golden.detail


def test_a_file_that_is_no_case(server: Server, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "broken.json").write_text('{"inputs": 3}')
    wrong = failed(check(urls(server)["rest"], plan("perceptron", golden=tmp_path)))
    assert wrong.check == "golden broken.json"
    assert "not a golden case" in wrong.detail


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_an_objective_that_cannot_be_met(server: Server, way: str) -> None:
    wrong = failed(check(urls(server)[way], plan("perceptron", p95_ms=0.001)))
    assert wrong.check == "latency"
    assert wrong.detail.endswith("of 7 requests; p95 may take 0.001 ms")


def test_the_time_bound(server: Server) -> None:
    bounded = Plan([("perceptron", "")], {}, None, samples=10**9, warmup=0, seconds=0.001)
    assert 5 <= check(urls(server)["rest"], bounded).checks[-1].values["samples"] < 10**6


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_an_unknown_model(server: Server, way: str) -> None:
    report = check(urls(server)[way], plan("missing"))
    assert not report.ok
    assert report.reachable
    assert "'missing' is not served here" in next(check.detail for check in report.checks if not check.ok)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1", "unix:/nowhere", "grpc+unix:/nowhere"])
def test_nobody_there(url: str) -> None:
    report = check(url, plan("perceptron"))
    assert (report.ok, report.reachable) == (False, False)
    assert failed(report).check == "connection"


def test_tls_certificates_and_tokens(start_server: Callable[..., Server], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token = tmp_path / "token"
    token.write_text("secret")
    server = start_server(tls={**authority.files, "client_ca": str(authority.ca)}, bearer_token_file=str(token))
    server.wait_ready()
    right = Access(authority.ca, authority.client_certificate, authority.client_key, "secret", 30)
    for url in (f"https://127.0.0.1:{server.rest_port}", f"grpcs://127.0.0.1:{server.grpc_port}"):
        assert check(url, plan("perceptron"), right).ok
        wrong_token = check(url, plan("perceptron"), replace(right, token="other"))
        assert (wrong_token.ok, wrong_token.reachable) == (False, True)
        assert "a valid bearer token is required" in wrong_token.checks[-1].detail
        assert not check(url, plan("perceptron"), replace(right, certificate=None, key=None)).reachable
        assert not check(url, plan("perceptron"), replace(right, ca=None)).reachable


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host", "grpc://host", "grpc://host:1/path", "http://host:x", "unix:relative", "http://"],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL: seen "):
        parse_target(url)


def test_command(server: Server, model_directories: dict[str, ModelDirectory]) -> None:
    golden = f"perceptron={model_directories['perceptron'].path}"
    good = (*urls(server).values(),)
    result = run("check", *good[:2], "--model", "perceptron:1.0.0", "--model", "every_type", "--golden", golden)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("  perceptron 1.0.0  golden first.json  ok      largest error ") == 2
    result = run("check", good[0], "grpc://127.0.0.1:1", "--model", "perceptron", "--samples", "5", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 3
    assert [(report["url"], report["ok"], report["reachable"]) for report in document["servers"]] == [
        (good[0], True, True),
        ("grpc://127.0.0.1:1", False, False),
    ]
    latency = document["servers"][0]["checks"][-1]
    assert (latency["model"], latency["check"], latency["samples"]) == ("perceptron", "latency", 5)
    assert run("check", good[0], "--model", "perceptron", "--p95-ms", "0.001").returncode == 1
    assert run("check", "ftp://host").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ftp://host",), "URL: seen 'ftp://host'; allowed: http://HOST"),
        (("http://h", "--golden", "/dev"), "--golden: seen '/dev'; allowed: a directory with golden cases"),
        (("http://h", "--model", "a", "--golden", "b=/dev"), "--golden: seen 'b'; allowed: a; name a --model"),
        (("http://h", "--model", "a", "--golden", "/dev/null"), "--golden: seen '/dev/null'; allowed: a directory"),
        (("http://h", "--cert", "/dev/null"), "--cert, --key: seen one of them; allowed: both or none"),
        (("http://h", "--token-file", "/missing"), "--token-file: seen '/missing' (No such file or directory)"),
        (("http://h", "--token-file", "/etc/hosts"), "--token-file: seen '/etc/hosts', which holds something else"),
        (("https://h", "--ca", "/dev/null"), "--ca, --cert, --key: seen files that cannot be used"),
        (("http://h", "--samples", "0"), "argument --samples: seen '0'; allowed: a whole number from 1"),
        (("http://h", "--p95-ms=-1"), "argument --p95-ms: seen '-1'; allowed: a number above 0"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        parsed = parser().parse_args(["check", *arguments])
        COMMANDS[parsed.run](parsed)
    except ConfigurationError as error:
        assert message in str(error)
    except SystemExit as end:
        assert end.code == 2
        assert message in capsys.readouterr().err
    else:
        raise AssertionError("no error")


def test_models_of_a_configuration(model_directories: dict[str, ModelDirectory], tmp_path: Path) -> None:
    models = [model_directories["perceptron"].config]
    file = tmp_path / "runtime.json"
    file.write_text(json.dumps({"listen": {"rest": ["127.0.0.1:21000"]}, "models": models}))
    result = run("models", "--config", file, "--json")
    assert result.returncode == 0
    (model,) = json.loads(result.stdout)["models"]
    assert (model["name"], model["version"], model["state"]) == ("perceptron", "1.0.0", "READY")
    assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    models.append({"name": "gone", "version": "2.0.0", "path": str(tmp_path / "gone")})
    file.write_text(json.dumps({"listen": {"rest": ["127.0.0.1:21000"]}, "models": models}))
    result = run("models", "--config", file)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "STATE", "PLATFORM", "TENSORS", "OR", "REASON"]
    assert "scores FP32 [-1, 3], best INT64 [-1]" in lines[1]
    assert lines[2].startswith(f"gone        2.0.0    UNAVAILABLE  -                 {tmp_path}/gone/model.json: ")


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_named_models_of_a_server(server: Server, way: str) -> None:
    result = run("models", urls(server)[way], "--model", "perceptron", "--model", "every_type:1.0.0")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[1].startswith(
        "perceptron  -        READY  onnxruntime_onnx  features FP32 [-1, 4] -> scores FP32 [-1, 3]"
    )
    assert lines[2].startswith("every_type  1.0.0    READY")
    assert "... 13 in all" in lines[2]
    result = run("models", urls(server)[way], "--model", "missing")
    assert result.returncode == 1
    assert "model 'missing' is not served here" in result.stderr


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_all_models_of_the_index(server: Server, model_directories: dict[str, ModelDirectory], way: str) -> None:
    names = sorted(model_directories)
    result = run("models", urls(server)[way], "--json")
    assert (result.returncode, result.stderr) == (0, "")
    listed = json.loads(result.stdout)["models"]
    assert [(model["name"], model["version"], model["state"]) for model in listed] == [
        (name, "1.0.0", "READY") for name in names
    ]
    assert listed[1]["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    report = check(urls(server)[way], plan())
    assert report.ok
    assert [check.model for check in report.checks if check.check == "latency"] == [f"{name} 1.0.0" for name in names]


def test_models_of_nobody() -> None:
    result = run("models", "http://127.0.0.1:1")
    assert result.returncode == 3
    assert "http://127.0.0.1:1 cannot be reached: " in result.stderr
