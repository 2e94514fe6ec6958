# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Generate the Python messages of open_inference_grpc.proto: ``python generate.py DIRECTORY``.

Needs grpcio-tools. DIRECTORY is src/edgeml_runtime/codecs, unless a test compares.
"""

import sys
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

HEADER = """\
# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa
# fmt: off
# mypy: ignore-errors
"""


def generate(directory: Path) -> None:
    """Write open_inference_grpc_pb2.py and its .pyi into ``directory``."""
    source = Path(__file__).parent
    arguments = ["protoc", f"-I{source}", f"--python_out={directory}", f"--pyi_out={directory}"]
    if protoc.main([*arguments, "open_inference_grpc.proto"]) != 0:
        sys.exit("protoc failed")
    for suffix in ("py", "pyi"):
        file = directory / f"open_inference_grpc_pb2.{suffix}"
        file.write_text(HEADER + file.read_text())


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
