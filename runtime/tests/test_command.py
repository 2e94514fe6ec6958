# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line apart from serve."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import ModelDirectory


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeml_runtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> str:
    models = [model_directories[name].config for name in ("perceptron", "every_type")]
    file = tmp_path / "runtime.json"
    file.write_text(json.dumps({"listen": {"rest": ["127.0.0.1:21000"]}, "models": models}))
    return str(file)


def test_bench(config: str) -> None:
    result = run("bench", "--config", config, "--samples", "30", "--warmup", "0")
    assert (result.returncode, result.stderr) == (0, "")
    measured = json.loads(result.stdout)["models"]
    assert sorted(measured) == ["every_type", "perceptron"]
    for of_model in measured.values():
        assert of_model["samples"] == 30
        assert 0 < of_model["p50_us"] <= of_model["p95_us"] <= of_model["p99_us"]


def test_bench_of_one_model(config: str) -> None:
    result = run("bench", "--config", config, "--samples", "5", "--model", "perceptron")
    assert list(json.loads(result.stdout)["models"]) == ["perceptron"]
    result = run("bench", "--config", config, "--model", "other")
    assert result.returncode == 2
    assert "--model: seen 'other'; allowed: perceptron, every_type" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("serve",), ("bench", "--config", "x", "--samples", "0"), ("fly",)])
def test_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: edgeml-runtime" in result.stderr


def test_help() -> None:
    assert "exit codes:" in run("--help").stdout
    assert "--config FILE" in run("serve", "--help").stdout
    assert "p50_us" in run("bench", "--help").stdout
    assert run("--version").stdout == "edgeml-runtime 0.1.0\n"


def test_start_imports_nothing_that_is_not_needed(config: str) -> None:
    """Start-up is imports: no package metadata, no symbolic mathematics, nothing of grpc for a bench."""
    code = (
        "import sys, edgeml_runtime.server, edgeml_runtime.engine.served_model, edgeml_runtime.transports.grpc;"
        "print(*sorted({'sympy', 'pkg_resources', 'setuptools', 'pip', 'mpmath'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "\n"
