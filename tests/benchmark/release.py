# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change of release costs on one device, while clients ask over REST and gRPC: `make bench-release`.

The device is that of the fault trials: an engine, a mirror, and the module runtime_release. Its clients keep their
connections, ask at a fixed rate, and never ask a second time for what failed.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_ports
from ansible_collections.edgeml.fleet.tests.faults.rig import FACTORS, Rig, running_rig
from ansible_collections.edgeml.fleet.tests.support.content import PACKAGES, REPOSITORY_ROOT, Authority

RESULTS = REPOSITORY_ROOT / "build" / "bench"
ROUNDS = int(os.environ.get("ROUNDS") or 3)
QUIET_SECONDS = 8.0
#: Requests a second over each protocol.
RATES = {"REST": 200, "gRPC": 50}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
Asked = tuple[float, float, bool]


# -- clients, each in a process of its own -----------------------------------------------------------------------------


def _rest(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps(BODY)

    def ask() -> None:
        connection.request("POST", "/v2/models/multiply/infer", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise ValueError(answer)

    return ask


def _grpc(port: int) -> Any:
    import grpc  # type: ignore[import-untyped]  # the benchmark's client alone needs it
    from ansible_collections.edgeml.fleet.runtime.src.edgeml_runtime.codecs import open_inference_grpc_pb2 as messages

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )
    request = messages.ModelInferRequest(model_name="multiply")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1.0)
    return lambda: call(request, timeout=30)


def ask_on(protocol: str, port: int, stop: Path) -> None:
    """Ask at the protocol's rate until the file `stop` is there; print begin, seconds and success of each request."""
    ask = (_rest if protocol == "REST" else _grpc)(port)
    asked: list[Asked] = []
    pause = 1 / RATES[protocol]
    due = time.monotonic()
    while not stop.exists():
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due + pause, time.monotonic() - 1)
        began = time.monotonic()
        try:
            ask()
            served = True
        except Exception as error:
            print(f"{protocol}: {type(error).__name__}: {error}", file=sys.stderr)
            served = False
        asked.append((began, time.monotonic() - began, served))
    print(json.dumps(asked))


# -- figures -----------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def figures(asked: Sequence[Asked], begin: float, end: float) -> dict[str, float]:
    """Return what clients saw while a run was under way from `begin` to `end`, and before."""
    before = [seconds for began, seconds, served in asked if served and began + seconds < begin]
    during = [seconds for began, seconds, served in asked if served and began + seconds >= begin and began <= end]
    answers = sorted(began + seconds for began, seconds, served in asked if served)
    gaps = [later - sooner for sooner, later in itertools.pairwise(answers) if begin <= later <= end + 2]
    return {
        "sent": len(asked),
        "lost": sum(not served for _began, _seconds, served in asked),
        "gap_ms": 1000 * max(gaps),
        "p99_before_ms": 1000 * percentile(before, 0.99),
        "p99_during_ms": 1000 * percentile(during, 0.99),
    }


@contextlib.contextmanager
def asking(ports: dict[str, int], asked: dict[str, list[Asked]]) -> Iterator[None]:
    """Let both clients ask meanwhile; `asked` has what they saw then."""
    with tempfile.TemporaryDirectory() as directory:
        stop = Path(directory) / "stop"
        command = [sys.executable, __file__]
        clients = {
            name: subprocess.Popen([*command, name, str(port), str(stop)], stdout=subprocess.PIPE)
            for name, port in ports.items()
        }
        try:
            yield
        finally:
            stop.touch()
            for name, client in clients.items():
                asked[name] = [tuple(one) for one in json.loads(client.communicate()[0])]


def measure(rig: Rig, ports: dict[str, int], options: dict[str, Any]) -> dict[str, Any]:
    """Bring the device to a release under load, and return what it took and what the clients saw."""
    asked: dict[str, list[Asked]] = {}
    with asking(ports, asked):
        time.sleep(QUIET_SECONDS)
        begin = time.monotonic()
        out, error = rig.box.converge(options).communicate(timeout=300)
        end = time.monotonic()
        time.sleep(2)
    told = json.loads(out)
    if told.get("failed"):
        raise SystemExit(f"{told}\n{error.decode()}")
    seen = {name: figures(requests, begin, end) for name, requests in asked.items()}
    return {"seconds": end - begin, "changed": told["changed"], "clients": seen}


def kinds(rig: Rig, grpc_port: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return what is measured in a round, in its order, each with the options of the module."""
    first, second = (copy.deepcopy(rig.options[factor]) for factor in FACTORS[:2])
    for options in (first, second):
        options["configuration"]["listen"]["grpc"].append(f"127.0.0.1:{grpc_port}")
        options["force"] = True
    yield "start", first
    yield "no change", first
    yield "another model", {**first, "models": second["models"]}
    yield "another image", {**second}
    configured = copy.deepcopy(second)
    configured["configuration"]["log_level"] = "warning"
    yield "another setting", configured
    yield "roll back", {**configured, "state": "previous", "release": ""}


def main() -> None:
    """Measure, and write the table and the figures."""
    directory = Path(tempfile.mkdtemp(prefix="edgeml-bench-", dir="/var/tmp"))
    authority = Authority.made(directory)
    (grpc_port,) = free_ports(1)
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        with running_rig(unpacked("content-programs", PACKAGES), authority) as rig:
            ports = {"REST": rig.rest_port, "gRPC": grpc_port}
            for number in range(ROUNDS):
                for kind, options in kinds(rig, grpc_port):
                    if kind == "start":
                        out, error = rig.box.converge(options).communicate(timeout=300)
                        if json.loads(out).get("failed"):
                            raise SystemExit(out.decode() + error.decode())
                        continue
                    result = measure(rig, ports, options)
                    print(f"round {number + 1}, {kind}: {result['seconds']:.2f} s", flush=True)
                    found.setdefault(kind, []).append(result)
    finally:
        shutil.rmtree(directory)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "release.json").write_text(json.dumps({"rounds": ROUNDS, "rates": RATES, "runs": found}, indent=2))
    (RESULTS / "release.md").write_text(table(found))
    print(table(found))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the figures of all rounds as Markdown: sums of requests, the longest gap, medians of the rest."""
    rows = ["| Run | Seconds | Protocol | Sent | Lost | Longest gap, ms | p99 before, ms | p99 during, ms |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for kind, runs in found.items():
        for protocol in RATES:
            seen = [run["clients"][protocol] for run in runs]
            middle = {key: percentile([one[key] for one in seen], 0.5) for key in ("p99_before_ms", "p99_during_ms")}
            seconds = percentile([run["seconds"] for run in runs], 0.5)
            rows.append(
                f"| {kind} | {seconds:.2f} | {protocol} | {sum(one['sent'] for one in seen)} | "
                f"{sum(one['lost'] for one in seen)} | {max(one['gap_ms'] for one in seen):.0f} | "
                f"{middle['p99_before_ms']:.1f} | {middle['p99_during_ms']:.1f} |"
            )
    head = f"{ROUNDS} rounds, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors; {RATES['REST']} requests a "
    return f"{head}second over REST and {RATES['gRPC']} over gRPC, each on one connection.\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if len(sys.argv) == 4:
        ask_on(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
