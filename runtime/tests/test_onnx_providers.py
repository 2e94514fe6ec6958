# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What computes a model: the first execution provider that loads it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine.onnx_model import OnnxModel
from edgeml_runtime.errors import ConfigurationError, StartError
from edgeml_runtime.serving import EngineOptions
from onnx_models import perceptron

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BOTH = ("OpenVINO", "CPU")
#: Single precision, computed in another order.
TOLERANCE = 1e-5


def test_another_provider_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The ONNX Runtime of these tests has no OpenVINO."""
    file = perceptron(tmp_path).path / "model.onnx"
    with caplog.at_level(logging.WARNING):
        model = OnnxModel(file, EngineOptions(providers=BOTH), tmp_path / "cache")
    assert model.provider == "CPU"
    (line,) = caplog.messages
    assert "execution provider OpenVINO cannot load it: this ONNX Runtime has CPU only" in line
    assert OnnxModel(file, EngineOptions(), None).provider == "CPU" and len(caplog.messages) == 1


def test_without_fallback_the_model_is_refused(tmp_path: Path) -> None:
    file = perceptron(tmp_path).path / "model.onnx"
    with pytest.raises(StartError, match=r"provider OpenVINO cannot load it.*set engine\.provider_fallback to true"):
        OnnxModel(file, EngineOptions(providers=BOTH, provider_fallback=False), None)


@pytest.mark.parametrize("names", [[], ["OpenVINO"], ["CPU", "OpenVINO"], ["CPU", "CPU"], ["cpu"], "CPU"])
def test_cpu_is_last_and_each_once(names: object) -> None:
    document = {
        "listen": {"rest": ["unix:/run/rest"]},
        "models": [{"name": "m", "version": "1.0.0", "path": "/m"}],
        "engine": {"providers": names},
    }
    with pytest.raises(ConfigurationError, match=r"engine\.providers"):
        read_config(document, "file")


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment with OpenVINO, which is made when it is not there or not up to date."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        subprocess.run(["make", "build/environments/openvino/installed"], cwd=ROOT, check=True, timeout=590)
    return ROOT / "build" / "environments" / "openvino" / "bin" / "python"


@pytest.mark.timeout(600)
def test_openvino_answers_as_the_processor_does(python: Path, tmp_path: Path) -> None:
    file = perceptron(tmp_path).path / "model.onnx"
    answers = {}
    for provider, interpreter in (("CPU", Path(sys.executable)), ("OpenVINO", python)):
        program = [interpreter, HERE / "support" / "answer_with.py", file, provider]
        done = subprocess.run(program, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
        assert done.returncode == 0, done.stderr
        answers[provider] = json.loads(done.stdout)
        assert answers[provider]["provider"] == provider
    pairs = zip(answers["CPU"]["scores"], answers["OpenVINO"]["scores"], strict=True)
    assert all(abs(one - other) <= TOLERANCE * max(1, abs(one)) for one, other in pairs)
    assert answers["CPU"]["best"] == answers["OpenVINO"]["best"]
