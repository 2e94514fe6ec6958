# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: serve by paths, bench, help, and errors of usage."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from edgeml_runtime.cli.arguments import parser
from edgeml_runtime.cli.command import COMMANDS
from edgeml_runtime.errors import ConfigurationError
from onnx_models import ModelDirectory
from ports import free_ports


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml_runtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> str:
    models = [model_directories[name].config for name in ("perceptron", "every_type")]
    perceptron = str(Path(models[0]["path"]) / "model.onnx")
    models.insert(1, {"name": "perceptron", "version": "2.0.0", "path": perceptron})
    file = tmp_path / "runtime.json"
    file.write_text(json.dumps({"listen": {"rest": ["127.0.0.1:21000"]}, "models": models}))
    return str(file)


def test_bench(config: str) -> None:
    result = run("bench", "--config", config, "--samples", "30", "--warmup", "0")
    assert (result.returncode, result.stderr) == (0, "")
    measured = json.loads(result.stdout)["models"]
    assert {name: list(versions) for name, versions in measured.items()} == {
        "perceptron": ["1.0.0", "2.0.0"],
        "every_type": ["1.0.0"],
    }
    for of_model in (figures for versions in measured.values() for figures in versions.values()):
        assert of_model["samples"] == 30
        assert 0 < of_model["p50_us"] <= of_model["p95_us"] <= of_model["p99_us"]


def test_bench_of_one_model(config: str) -> None:
    result = run("bench", "--config", config, "--samples", "5", "--model", "perceptron")
    assert list(json.loads(result.stdout)["models"]) == ["perceptron"]
    result = run("bench", "--config", config, "--model", "other")
    assert result.returncode == 2
    assert "--model: seen 'other'; allowed: perceptron, every_type" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("serve",), ("serve", "x", "--config", "x"), ("bench", "--config", "x", "--samples", "0"), ("fly",)],
)
def test_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: edgeml-runtime" in result.stderr


def test_help() -> None:
    overview = run("--help").stdout
    for command in ("serve", "check", "models", "bench"):
        assert f"\n    {command} " in overview
        text = run(command, "--help").stdout
        for part in ("exit codes:\n", "examples:\n", f"  edgeml-runtime {command} "):
            assert part in text
    for signal_name in ("SIGHUP", "SIGUSR1", "SIGTERM"):
        assert signal_name in run("serve", "--help").stdout
    assert run("--version").stdout == "edgeml-runtime 0.1.0\n"


def serve_paths(*arguments: str | Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A server started with paths, and what it says when it is ready."""
    command = [sys.executable, "-m", "edgeml_runtime", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if lines[-1].startswith("  curl "):
            return process, lines
    raise AssertionError(f"the server ended with {process.wait()}: {lines}")


def test_serve_paths(tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> None:
    """A model directory and a bare file, and the command that the server proposes works."""
    file = tmp_path / "my_model.onnx"
    shutil.copy(model_directories["perceptron"].path / "model.onnx", file)
    rest, grpc, metrics = free_ports(3)
    listeners = ("--rest", f"127.0.0.1:{rest}", "--grpc", f"localhost:{grpc}", "--metrics", f"127.0.0.1:{metrics}")
    process, lines = serve_paths(model_directories["perceptron"].path, file, *listeners)
    try:
        tensors = "features FP32 [-1, 4] -> scores FP32 [-1, 3], best INT64 [-1]"
        assert lines[:-1] == [
            "edgeml-runtime 0.1.0 serves",
            f"  perceptron 1.0.0: {tensors}",
            f"  my_model 1.0.0: {tensors}",
            "at",
            f"  REST     http://127.0.0.1:{rest}",
            f"  gRPC     grpc://127.0.0.1:{grpc}",
            f"  metrics  http://127.0.0.1:{metrics}/metrics",
            "try",
        ]
        answer = subprocess.run([*shlex.split(lines[-1]), "--silent", "--fail"], capture_output=True, check=True)
        assert json.loads(answer.stdout)["outputs"][0]["shape"] == [1, 3]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


def test_serve_a_file_on_a_unix_socket(tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> None:
    """Without a golden case the proposed request is made of zeros."""
    file = tmp_path / "my model.onnx"
    shutil.copy(model_directories["perceptron"].path / "model.onnx", file)
    result = run("serve", str(file))
    assert result.returncode == 2
    assert "'my model'; allowed: letters" in result.stderr
    file = file.rename(tmp_path / "my_model.onnx")
    sockets = [f"unix:{tmp_path}/{name}.sock" for name in ("rest", "grpc", "metrics")]
    process, lines = serve_paths(file, "--rest", sockets[0], "--grpc", sockets[1], "--metrics", sockets[2])
    try:
        assert lines[-1].startswith(
            f"  curl --unix-socket {tmp_path}/rest.sock http://localhost/v2/models/my_model/infer"
        )
        answer = subprocess.run([*shlex.split(lines[-1]), "--silent", "--fail"], capture_output=True, check=True)
        assert json.loads(answer.stdout)["outputs"][0]["data"] == [0, 0, 0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.onnx",), "PATH: seen 'missing.onnx', which does not exist; allowed: a directory with model.json"),
        (("/dev/null",), "PATH: seen '/dev/null', another file; allowed: a directory with model.json"),
        (("/",), "PATH: seen /model.json: No such file or directory"),
        (("model.onnx", "--rest", "0.0.0.0:8000"), "--rest: seen '0.0.0.0:8000' with no TLS and no client check"),
        (("model.onnx", "--grpc", "8001"), "--grpc: seen '8001'; allowed: 'IP:PORT'"),
        (("--config", "x.json", "--metrics", "127.0.0.1:8002"), "--metrics: seen --config as well"),
    ],
)
def test_wrong_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "model.onnx").touch()
    monkeypatch.chdir(tmp_path)
    parsed = parser().parse_args(["serve", *arguments])
    with pytest.raises(ConfigurationError) as caught:
        COMMANDS[parsed.run](parsed)
    assert str(caught.value).startswith(f"command line: {message}")


def test_start_imports_nothing_that_is_not_needed(config: str) -> None:
    """Start-up is imports: no package metadata, no symbolic mathematics, nothing of grpc for a bench."""
    code = (
        "import sys, edgeml_runtime.server, edgeml_runtime.engine.served_model, edgeml_runtime.transports.grpc.listen;"
        "print(*sorted({'sympy', 'pkg_resources', 'setuptools', 'pip', 'mpmath'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "\n"
