# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, and schemathesis against a server that serves it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx_models import ModelDirectory
from serving import Server

# Loading is slow, and what is unloaded answers 503, which counts as a failure: there the name is none that is served.
CONFIG = """
[parameters]
"path.model" = "perceptron"
"path.version" = "1.0.0"

[[operations]]
include-path-regex = "load$"
parameters = { "path.model" = "nothing" }

# Whether inputs that keep to the protocol fit the model is not for the document to say.
[[operations]]
include-path-regex = "infer$"
checks = { positive_data_acceptance = { enabled = false } }
"""


def test_document_names_every_path_that_answers(server: Server) -> None:
    document = server.rest("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        concrete = path.replace("{model}", "perceptron").replace("{version}", "1.0.0")
        if concrete.endswith("load"):
            continue
        for method in ("get", "head", "post"):
            status = server.rest(method.upper(), concrete, b"" if method == "post" else None).status
            assert (status == 405) == (method not in methods), (method, path, status)
            assert status == 405 or str(status) in methods[method]["responses"]


@pytest.mark.slow
def test_schemathesis_finds_nothing(
    start_server: Any, model_directories: dict[str, ModelDirectory], tmp_path: Path
) -> None:
    server = start_server([model_directories["perceptron"], model_directories["every_type"]])
    server.wait_ready()
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    url = f"http://127.0.0.1:{server.rest_port}"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml")),
        *("run", f"{url}/openapi.json", "--url", url, "--mode", "all"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "3", "--seed", "1", "--no-color"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert "Traceback" not in server.log
