# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Prepare, measure, report."""

import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from serving_bench.cases import load_case
from serving_bench.chart import write_charts
from serving_bench.encodings import Encoding
from serving_bench.environments import InstallError, installed_bytes, installed_versions, make_environment
from serving_bench.measure import Plan, measure
from serving_bench.options import Options, read_options
from serving_bench.places import BENCHMARKS, ECHO, MODELS, RESULTS, ROOT, RUN
from serving_bench.report import write_report
from serving_bench.results import Absence, Results, read_results
from serving_bench.servers import SERVERS, Server

JSON = RESULTS / "runtime.json"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DISTRIBUTIONS = {"pytriton": "nvidia-pytriton", "edgeml": "edgeml-runtime"}


def main() -> None:
    """Run what the command line says."""
    options = read_options(sys.argv[1:])
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    if options.report_only:
        if not JSON.exists():
            raise SystemExit(f"there is no {JSON}; run the benchmark first")
        results = read_results(JSON)
    else:
        results = _run(options)
        results.write(JSON)
    write_report(results, RESULTS / "runtime.md")
    write_charts(results, RESULTS / "runtime")
    print((RESULTS / "runtime.md").read_text(encoding="utf-8"))


def _run(options: Options) -> Results:
    servers, absences = _prepare([server for server in SERVERS if server.name in options.servers])
    results = Results(
        absences=absences,
        about=_about(options, servers),
        servers=[server.name for server in servers],
        models=list(options.models),
        installed_bytes={server.name: installed_bytes(server.environment) for server in servers if server.environment},
    )
    plan = Plan(
        servers=servers,
        cases=[load_case(MODELS, model) for model in options.models],
        encodings=[Encoding(each) for each in options.encodings],
        clients=options.clients,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    started = time.monotonic()
    measure(plan, results)
    results.about["seconds"] = round(time.monotonic() - started)
    return results


def _prepare(servers: list[Server]) -> tuple[list[Server], list[Absence]]:
    """Make environments, models and floors. Returns the servers that can be had here, and why others cannot."""
    for name in ("edgeml", "models"):
        make_environment(name)
    usable, absences = [], []
    for server in servers:
        try:
            if server.environment:
                make_environment(server.environment)
            usable.append(server)
        except InstallError as error:
            print(f"absent: {error}", flush=True)
            absences.append(Absence(server.name, "", "", str(error)))
    builder = BENCHMARKS / "build_models.py"
    stamp = MODELS / "made-from"
    if not stamp.exists() or stamp.read_bytes() != builder.read_bytes():
        print("building the models (once)", flush=True)
        subprocess.run([str(make_environment("models")), str(builder), str(MODELS)], check=True)
        stamp.write_bytes(builder.read_bytes())
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(ECHO), str(BENCHMARKS / "floors" / "echo.c")], check=True)
    RUN.mkdir(parents=True, exist_ok=True)
    return usable, absences


def _about(options: Options, servers: list[Server]) -> dict[str, object]:
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    versions = {}
    for server in servers:
        if server.environment:
            packages = installed_versions(server.environment)
            name = DISTRIBUTIONS.get(server.environment, server.environment)
            versions[server.name] = packages.get(name, "") or packages.get(name.replace("-", "_"), "")
            versions["onnxruntime"] = packages["onnxruntime"]
    client = subprocess.run(["h2load", "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "client": client,
        "versions": versions,
        "rounds": options.rounds,
        "run_seconds": options.seconds,
        "clients": list(options.clients),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # once is enough: servers are being ended
    print("stopping: ending the servers", flush=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
