# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A device of its own on this machine's engine, and small Python models that fail in one way each."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import tar_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Limits, Model

#: Doubles what it gets, after the fault has had its say.
SOURCE = """\
import os
import time

import numpy as np

calls = 0
kept = []


def load(context):
    time.sleep(context.parameters.get("load_seconds", 0))


def infer(inputs):
    global calls
    calls += 1
    x = inputs["x"]
    {fault}
    return {{"y": x * np.float32(2)}}
"""
FAULTS = {
    "none": "pass",
    "slow": "time.sleep(0.03)",
    "much slower": "time.sleep(0.3)",  # than any machine answers otherwise
    "greedy": "kept.append(np.ones(20_000_000))",
    "crashes": "os._exit(3) if calls > 30 else None",
    "weary": "time.sleep(0.15) if x[0] < 0 else None",
    "wrong elsewhere": "x = x + np.float32(x[0] < 0)",  # than in its golden case
    "fails elsewhere": "assert x[0] >= 0",
    "poison": "os._exit(3) if x[0] < 0 else None",
}


def make_model(root: Path, fault: str = "none", expected: float = 6.0, **settings: Any) -> Model:
    """Put a model on the disk below `root`, as a transaction that fetched it has left it, and return it.

    `expected` is what its golden case wants for 3.0. `settings` are more of Model.
    """
    case = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3.0]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [expected]}],
    }
    tensor = {"datatype": "FP32", "shape": [1]}
    files = {
        "model.py": SOURCE.format(fault=FAULTS[fault]),
        "model.json": json.dumps({"name": "double", "version": "1.0.0", "platform": "python", "file": "model.py"}),
        "serving.json": json.dumps({"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}),
        "golden/three.json": json.dumps(case),
    }
    entries: dict[str, Path | bytes] = {name: text.encode() for name, text in files.items()}
    root.mkdir(parents=True, exist_ok=True)
    digest = tar_digest({**entries, "golden": root})[0].partition(":")[2]
    for name, text in files.items():
        path = root / "models" / digest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Model("double", "1.0.0", "models/double", f"sha256:{digest}", 1, golden_cases=1, **settings)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def release_of(image: str, ports: list[int], model: Model, memory_mb: int = 0) -> Desired:
    """Return a release of the collection's runtime that serves one model."""
    rest, grpc = (f"127.0.0.1:{port}" for port in ports)
    private = {protocol: [f"unix:/run/edgeml/{protocol}.sock"] for protocol in ("rest", "grpc")}
    listen = {"rest": [rest, *private["rest"]], "grpc": [grpc, *private["grpc"]], "metrics": []}
    return Desired(image, 0, (model,), {"listen": listen, "log_level": "info"}, limits=Limits(memory_mb=memory_mb))
