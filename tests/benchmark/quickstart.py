# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of the quickstart's runtime, served against in-process in the same container: `make bench-quickstart`."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import ModelObjective, measure_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
CONTAINER = "edgeml-runtime"
ENDPOINTS = {"REST": "http://127.0.0.1:8000", "gRPC": "grpc://127.0.0.1:8001"}
ROUNDS = 5
SAMPLES = 300


def docker(*arguments: str) -> str:
    """Return what a docker command prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def in_process(model: str) -> dict[str, float]:
    """Return p50 and p99 in ms of the engine alone, in a process of its own in the same container."""
    command = ["exec", CONTAINER, "python3.13", "-m", "edgeml_runtime", "bench", "--config", "/etc/edgeml/runtime.json"]
    found = json.loads(docker(*command, "--model", model, "--samples", str(SAMPLES)))["models"][model]
    (found,) = found.values()  # one version
    return {"p50_ms": found["p50_us"] / 1000, "p99_ms": found["p99_us"] / 1000}


def served(endpoint: str, model: dict[str, Any]) -> dict[str, float]:
    """Return p50 and p99 in ms as a client on the same machine sees them, one request after another."""
    golden = f"/var/lib/edgeml/models/{model['digest'].removeprefix('sha256:')}/golden"
    with connect(endpoint) as client:
        found = measure_model(client, ModelObjective(model["name"], golden=golden), samples=SAMPLES, warmup=50)
    return {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms}


def cold_start_seconds() -> float:
    """Return the seconds from `docker start` to ready."""
    docker("stop", CONTAINER)
    started = time.monotonic()
    docker("start", CONTAINER)
    while True:
        with contextlib.suppress(FleetError), connect(ENDPOINTS["REST"], timeout=1) as client:  # not listening yet
            if client.ready():
                return time.monotonic() - started
        time.sleep(0.005)


def resident_mebibytes() -> float:
    """Return the resident memory of the server's process."""
    process = docker("inspect", "--format", "{{.State.Pid}}", CONTAINER).strip()
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} has no resident memory")


def main() -> None:
    """Measure in interleaved rounds, print a table and write it to build/bench."""
    state = json.loads(Path("/var/lib/edgeml/state.json").read_text())["active"]
    lock = yaml.safe_load((ROOT / "inventories" / "quickstart.lock.yml").read_text())
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for model in state["models"]:
            rounds.setdefault((model["name"], "in-process"), []).append(in_process(model["name"]))
            for protocol, endpoint in ENDPOINTS.items():
                rounds.setdefault((model["name"], protocol), []).append(served(endpoint, model))
    rows = []
    for (model_name, protocol), found in rounds.items():
        floor = rounds[(model_name, "in-process")]
        rows.append(
            {
                "model": model_name,
                "protocol": protocol,
                "p50_ms": statistics.median(r["p50_ms"] for r in found),
                "p99_ms": statistics.median(r["p99_ms"] for r in found),
                "p50_over_in_process": statistics.median(
                    r["p50_ms"] / f["p50_ms"] for r, f in zip(found, floor, strict=True)
                ),
            }
        )
    memory = resident_mebibytes()
    cold_start = statistics.median(cold_start_seconds() for _ in range(ROUNDS))
    image_bytes = {name: platform["size"] for name, platform in lock["images"]["runtime"]["platforms"].items()}
    figures = {
        "latency": rows,
        "resident_mib": memory,
        "cold_start_seconds": cold_start,
        "image_bytes": image_bytes,
    }
    lines = ["| model | | p50 ms | p99 ms | p50 / in-process |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['model']} | {r['protocol']} | {r['p50_ms']:.3f} | {r['p99_ms']:.3f} | {r['p50_over_in_process']:.2f} |"
        for r in rows
    ]
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in image_bytes.items())
    lines += [
        "",
        f"Medians of {ROUNDS} interleaved rounds of {SAMPLES} requests, one client. Image as transferred: {sizes}. "
        f"Resident {memory:.0f} MiB. Cold start to ready {cold_start:.2f} s.",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "quickstart.json").write_text(json.dumps(figures, indent=2) + "\n")
    (RESULTS / "quickstart.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
