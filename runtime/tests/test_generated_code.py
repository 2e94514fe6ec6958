# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The generated messages are those of the .proto file."""

import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generated")
    subprocess.run([sys.executable, str(RUNTIME / "proto" / "generate.py"), str(directory)], check=True, timeout=60)
    return directory


@pytest.mark.parametrize("name", ["open_inference_grpc_pb2.py", "open_inference_grpc_pb2.pyi"])
def test_committed_code_is_what_the_proto_file_gives(generated: Path, name: str) -> None:
    committed = RUNTIME / "src" / "edgeml_runtime" / "codecs" / name
    assert committed.read_text() == (generated / name).read_text(), "run proto/generate.py, see README.md"
