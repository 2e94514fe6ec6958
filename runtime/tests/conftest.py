# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests: real processes on ports of loopback."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_SOURCE = _HERE.parent / "src"
for _directory in (_SOURCE, _HERE / "support", _HERE.parent / "benchmarks"):
    sys.path.insert(0, str(_directory))
# For the server processes that the tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_SOURCE), os.environ.get("PYTHONPATH"))))

from onnx_models import ModelDirectory, every_type, perceptron, repeated_product  # noqa: E402
from serving import Server  # noqa: E402

StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelDirectory]:
    """Three models: all datatypes, a small perceptron with a golden case, and one as slow as one likes."""
    root = tmp_path_factory.mktemp("models")
    models = (every_type(root), perceptron(root), repeated_product(root, warm_up_steps=200))
    return {model.name: model for model in models}


@pytest.fixture(scope="session")
def server(model_directories: dict[str, ModelDirectory], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One ready server with all models, in clear on loopback, shared by the tests that only ask."""
    running = Server.start(tmp_path_factory.mktemp("server"), list(model_directories.values()))
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


@pytest.fixture
def start_server(tmp_path: Path, model_directories: dict[str, ModelDirectory]) -> Iterator[StartServer]:
    """Start a server of the test's own; by default with the perceptron alone. Ended after the test."""
    started: list[Server] = []

    def start(models: list[ModelDirectory] | None = None, **settings: object) -> Server:
        running = Server.start(tmp_path, models or [model_directories["perceptron"]], **settings)
        started.append(running)
        return running

    yield start
    for running in started:
        running.end()
