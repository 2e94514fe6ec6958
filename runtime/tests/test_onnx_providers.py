# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What computes a model: the first execution provider that loads it."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import onnxruntime
import pytest
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine import onnx_providers
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


NVIDIA = ("TensorRT", "CUDA", "CPU")


class _Session:
    """What ONNX Runtime makes on a machine where the libraries of some providers load; tests ask what it was given."""

    opened: ClassVar[list[list[object]]] = []
    loading: tuple[str, ...] = ()

    def __init__(self, _file: str, _options: object, providers: list[object], enable_fallback: bool) -> None:
        assert not enable_fallback
        self.opened.append(providers)
        names = [str(provider[0] if isinstance(provider, tuple) else provider) for provider in providers]
        self._names = [name for name in names if name in (*self.loading, "CPUExecutionProvider")]

    def get_providers(self) -> list[str]:
        return self._names

    def get_inputs(self) -> list[object]:
        return []

    get_outputs = get_inputs


@pytest.fixture
def machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> type[_Session]:
    """An ONNX Runtime with TensorRT and CUDA, as onnxruntime-gpu is, without their libraries."""
    full = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: full)
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(_Session, "opened", [])
    return _Session


def test_what_tensorrt_leaves_cuda_computes(
    machine_with_gpu: type[_Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built engines are kept, each with the model that it is of: TensorRT does not tell weights apart."""
    monkeypatch.setattr(machine_with_gpu, "loading", ("TensorrtExecutionProvider", "CUDAExecutionProvider"))
    file = perceptron(tmp_path).path / "model.onnx"
    cache = tmp_path / "cache"
    model = OnnxModel(file, EngineOptions(providers=NVIDIA, provider_fallback=False), cache)
    ((first, cuda, last),) = machine_with_gpu.opened
    assert (model.provider, cuda, last) == ("TensorRT", ("CUDAExecutionProvider", {}), "CPUExecutionProvider")
    name, settings = first  # type: ignore[misc]
    assert (name, settings["trt_engine_cache_enable"]) == ("TensorrtExecutionProvider", "1")
    kept = Path(settings["trt_engine_cache_path"])
    assert kept.is_dir() and kept.parent == cache / "tensorrt"
    OnnxModel(file, EngineOptions(providers=NVIDIA, cache=False), cache)
    assert machine_with_gpu.opened[-1][0] == ("TensorrtExecutionProvider", {})


def test_engines_used_least_go_when_there_are_too_many_bytes(
    machine_with_gpu: type[_Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if TensorRT had built them: no machine with its libraries is at hand."""
    monkeypatch.setattr(machine_with_gpu, "loading", ("TensorrtExecutionProvider",))
    monkeypatch.setattr(onnx_providers, "LARGEST_TOTAL_BYTES", 100)
    file = perceptron(tmp_path).path / "model.onnx"
    kept = tmp_path / "cache" / "tensorrt"
    now = time.time()
    for name, size, age in (("old", 60, 9e4), ("older", 10, 9.9e4), ("recent", 60, 8e4), ("building", 90, 60)):
        (kept / name).mkdir(parents=True)
        (kept / name / "engine").write_bytes(bytes(size))
        os.utime(kept / name, (now - age, now - age))
    OnnxModel(file, EngineOptions(providers=NVIDIA), tmp_path / "cache")
    own = {path.name for path in kept.iterdir()} - {"old", "older", "recent", "building"}
    assert len(own) == 1 and {path.name for path in kept.iterdir()} == {*own, "building"}
    (kept / "building" / "engine").write_bytes(bytes(9))
    os.utime(kept / own.pop(), (now - 9e4, now - 9e4))
    OnnxModel(file, EngineOptions(providers=NVIDIA), tmp_path / "cache")
    assert len(list(kept.iterdir())) == 2, "what fits stays, however old"


def test_without_tensorrt_cuda_computes(
    machine_with_gpu: type[_Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine_with_gpu, "loading", ("CUDAExecutionProvider",))
    file = perceptron(tmp_path).path / "model.onnx"
    with caplog.at_level(logging.WARNING):
        model = OnnxModel(file, EngineOptions(providers=NVIDIA), None)
    assert model.provider == "CUDA"
    (line,) = caplog.messages
    assert "provider TensorRT cannot load it: its library does not load" in line


def test_a_gpu_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    """With the ONNX Runtime of these tests, which computes with the processor alone."""
    file = perceptron(tmp_path).path / "model.onnx"
    assert OnnxModel(file, EngineOptions(providers=NVIDIA), None).provider == "CPU"
    with pytest.raises(StartError, match=r"provider TensorRT cannot load it: this ONNX Runtime has CPU only"):
        OnnxModel(file, EngineOptions(providers=NVIDIA, provider_fallback=False), None)


def test_names_of_providers_are_read() -> None:
    document = {
        "listen": {"rest": ["unix:/run/rest"]},
        "models": [{"name": "m", "version": "1.0.0", "path": "/m"}],
        "engine": {"providers": list(NVIDIA)},
    }
    assert read_config(document, "file").engine.providers == NVIDIA


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
