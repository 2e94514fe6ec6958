# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The servers: how each is started and what each speaks.

A server serves all benchmark models at once, with one engine thread per request and its defaults for everything else
but logs, which are quiet everywhere.
"""

import json
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving_bench.cases import Array, Case
from serving_bench.encodings import GRPC_METHOD, Encoding, Request, plain_values, protocol_answer, protocol_request
from serving_bench.options import OURS
from serving_bench.places import ADAPTERS, ECHO, ENVIRONMENTS, MODELS

ALL = tuple(Encoding)
CANNED_BYTES = 93
"""The size of a floor's answer, as in floors/echo.c."""
OIP_WITHOUT_BINARY = (Encoding.JSON, Encoding.GRPC_RAW, Encoding.GRPC_TYPED)


@dataclass(frozen=True)
class Launch:
    """What starts a server: its command, and what it adds to the environment."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ports:
    """Ports of loopback."""

    rest: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Server:
    """A server of the comparison."""

    name: str
    title: str
    environment: str
    """Name of the virtual environment, and of its requirements file; empty for a program of the system."""
    encodings: tuple[Encoding, ...]
    launch: Callable[[Ports, Path, Sequence[str]], Launch]
    """Ports, a directory for its files, and the names of the models."""
    request: Callable[[Case, Encoding], Request] = protocol_request
    answer: Callable[[Case, Encoding, dict[str, str], bytes], Array] = protocol_answer
    is_floor: bool = False
    """Transport only: reads the request and answers CANNED_BYTES without computing."""


def _python(environment: str) -> str:
    return str(ENVIRONMENTS / environment / "bin" / "python")


def _edgeml(ports: Ports, directory: Path, models: Sequence[str]) -> Launch:
    config = {
        "listen": {
            "rest": [f"127.0.0.1:{ports.rest}"],
            "grpc": [f"127.0.0.1:{ports.grpc}"],
            "metrics": [f"127.0.0.1:{ports.metrics}"],
        },
        "log_level": "warning",
        "models": [
            {"name": name, "version": "1.0.0", "path": str(MODELS / name), "digest": f"sha256:{'0' * 64}"}
            for name in models
        ],
    }
    file = directory / "runtime.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return Launch([_python(OURS), "-m", "edgeml_runtime", "serve", "--config", str(file)])


def _mlserver(workers: int) -> Callable[[Ports, Path, Sequence[str]], Launch]:
    def launch(ports: Ports, directory: Path, models: Sequence[str]) -> Launch:
        settings = {
            "host": "127.0.0.1",
            "http_port": ports.rest,
            "grpc_port": ports.grpc,
            "metrics_port": ports.metrics,
            "parallel_workers": workers,
            "grpc_max_message_length": 64 * 1024 * 1024,
            "debug": False,
            "metrics_dir": str(directory),
        }
        (directory / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        for name in models:
            (directory / name).mkdir()
            model = {
                "name": name,
                "implementation": "mlserver_onnx.OnnxModel",
                "parameters": {"uri": str(MODELS / name / "model.onnx")},
            }
            (directory / name / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        command = [str(ENVIRONMENTS / "mlserver" / "bin" / "mlserver"), "start", str(directory)]
        return Launch(command, {"PYTHONPATH": str(ADAPTERS)})

    return launch


def _kserve(ports: Ports, _directory: Path, models: Sequence[str]) -> Launch:
    command = [
        *(_python("kserve"), str(ADAPTERS / "kserve_onnx.py")),
        *("--http_port", str(ports.rest), "--grpc_port", str(ports.grpc)),
        *("--enable_latency_logging", "false"),
        *("--models", str(MODELS), "--names", *models),
    ]
    return Launch(command)


def _litserve(ports: Ports, _directory: Path, models: Sequence[str]) -> Launch:
    command = [_python("litserve"), str(ADAPTERS / "litserve_onnx.py"), "--port", str(ports.rest)]
    return Launch([*command, "--models", str(MODELS), "--names", *models])


def _bentoml(ports: Ports, directory: Path, models: Sequence[str]) -> Launch:
    command = [
        *(_python("bentoml"), "-m", "bentoml", "serve", "bentoml_onnx:OnnxService", "--working-dir", str(ADAPTERS)),
        *("--host", "127.0.0.1", "--port", str(ports.rest), "--quiet"),
    ]
    environment = {
        "BENCHMARK_MODELS": str(MODELS),
        "BENCHMARK_NAMES": ",".join(models),
        "BENTOML_HOME": str(directory / "home"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return Launch(command, environment)


def _pytriton(ports: Ports, _directory: Path, models: Sequence[str]) -> Launch:
    command = [
        *(_python("pytriton"), str(ADAPTERS / "pytriton_onnx.py")),
        *("--rest", str(ports.rest), "--grpc", str(ports.grpc), "--metrics", str(ports.metrics)),
        *("--models", str(MODELS), "--names", *models),
    ]
    # Its Python stub must load the library of the interpreter that it runs for, not the system's.
    return Launch(command, {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))})


def _litserve_request(case: Case, _encoding: Encoding) -> Request:
    return _json_request("/predict", {"model": case.model, "input": _nested(case)})


def _litserve_answer(case: Case, _encoding: Encoding, _headers: dict[str, str], body: bytes) -> Array:
    return np.asarray(json.loads(body)["output"], dtype=case.output.dtype).ravel()


def _bentoml_request(case: Case, _encoding: Encoding) -> Request:
    return _json_request(f"/{case.model}", {"input": _nested(case)})


def _bentoml_answer(case: Case, _encoding: Encoding, _headers: dict[str, str], body: bytes) -> Array:
    return np.asarray(json.loads(body), dtype=case.output.dtype).ravel()


def _nested(case: Case) -> list[Any]:
    values = np.array(plain_values(case.input.ravel()), dtype=object)
    nested: list[Any] = values.reshape(case.input.shape).tolist()
    return nested


def _json_request(path: str, document: object) -> Request:
    body = json.dumps(document, separators=(",", ":")).encode()
    return Request(path, (("content-type", "application/json"),), body)


def _echo(ports: Ports, _directory: Path, _models: Sequence[str]) -> Launch:
    return Launch([str(ECHO), str(ports.rest)])


def _echo_h2(ports: Ports, directory: Path, _models: Sequence[str]) -> Launch:
    answer = directory / GRPC_METHOD.removeprefix("/")
    answer.parent.mkdir()
    answer.write_bytes(bytes(CANNED_BYTES))
    return Launch(["nghttpd", "--no-tls", "--address=127.0.0.1", f"--htdocs={directory}", str(ports.grpc)])


SERVERS: tuple[Server, ...] = (
    Server(OURS, "edgeml-runtime", OURS, ALL, _edgeml),
    Server("mlserver", "MLServer", "mlserver", OIP_WITHOUT_BINARY, _mlserver(workers=1)),
    Server("mlserver-no-pool", "MLServer without pool", "mlserver", OIP_WITHOUT_BINARY, _mlserver(workers=0)),
    Server("kserve", "KServe", "kserve", ALL, _kserve),
    Server("litserve", "LitServe", "litserve", (Encoding.JSON,), _litserve, _litserve_request, _litserve_answer),
    Server("bentoml", "BentoML", "bentoml", (Encoding.JSON,), _bentoml, _bentoml_request, _bentoml_answer),
    Server("pytriton", "PyTriton", "pytriton", ALL, _pytriton),
    Server("echo", "C echo", "", (Encoding.JSON, Encoding.BINARY), _echo, is_floor=True),
    Server("echo-h2", "nghttpd", "", (Encoding.GRPC_RAW, Encoding.GRPC_TYPED), _echo_h2, is_floor=True),
)
