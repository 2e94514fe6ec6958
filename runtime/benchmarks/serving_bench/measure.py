# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The rounds: every server is started, and every question is put to all servers one right after the other."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serving_bench import h2load
from serving_bench.cases import Case
from serving_bench.checks import WrongAnswerError, check, wait_for_answer
from serving_bench.encodings import Encoding
from serving_bench.neighbours import moment, others_percent
from serving_bench.places import BENCHMARKS, ENVIRONMENTS, MODELS, RUN
from serving_bench.processes import ProcessTree, end_all, free_ports
from serving_bench.results import Absence, EngineSample, Results, Sample, Start
from serving_bench.servers import Ports, Server

START_SECONDS = 90
PINNED_CORE = max(os.sched_getaffinity(0))
"""One client and the server share this core: where the scheduler puts them otherwise decides the latency."""
IDLE_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What to measure. ``seconds`` is the least time of one run of the load client."""

    servers: Sequence[Server]
    cases: Sequence[Case]
    encodings: Sequence[Encoding]
    clients: Sequence[int]
    rounds: int
    seconds: float

    def run_seconds(self, clients: int, latency: float) -> float:
        """How long to measure a server that one client waits ``latency`` seconds for: enough answers for a p99."""
        return min(max(self.seconds, latency * max(100, 3 * clients)), 3 * self.seconds)


class Progress:
    """Lines with the time that has passed and the time that is left."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """Say that the next step is done."""
        self._done += 1
        passed = time.monotonic() - self._started
        left = passed / self._done * (self._steps - self._done)
        print(f"[{_clock(passed)} passed, about {_clock(left)} left] {text}", flush=True)


@dataclass
class _Running:
    server: Server
    ports: Ports
    tree: ProcessTree
    cold_start_seconds: float
    idle_pss_bytes: int = 0
    loaded_pss_bytes: int = 0
    idle_cpu_percent: float = 0.0


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, beginning with another one each time."""
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def measure(plan: Plan, results: Results) -> None:
    """Measure all rounds into ``results``."""
    progress = Progress(plan.rounds * len(plan.cases) * len(plan.encodings))
    for number in range(plan.rounds):
        shutil.rmtree(RUN, ignore_errors=True)
        with _servers(plan, number, results) as running:
            _look_at_idle(running)
            trees = [each.tree for each in running]
            for case in plan.cases:
                for turn, encoding in enumerate(plan.encodings):
                    before = moment(trees)
                    results.engine.append(_engine(number, case, encoding, plan.seconds))
                    _ask(plan, number, turn, case, encoding, running, results)
                    results.others_percent.append(round(others_percent(before, moment(trees)), 1))
                    progress.step(f"round {number + 1} of {plan.rounds}: {case.model}, {encoding}")
            for each in running:
                results.starts.append(
                    Start(
                        round=number,
                        server=each.server.name,
                        cold_start_seconds=each.cold_start_seconds,
                        idle_pss_bytes=each.idle_pss_bytes,
                        loaded_pss_bytes=each.loaded_pss_bytes,
                        idle_cpu_percent=each.idle_cpu_percent,
                    )
                )


@contextlib.contextmanager
def _servers(plan: Plan, number: int, results: Results) -> Iterator[list[_Running]]:
    """All servers, started one after the other; one that does not come up is absent. Ended whatever happens."""
    models = [case.model for case in plan.cases]
    trees: list[ProcessTree] = []
    running = []
    try:
        for server in rotated(plan.servers, number):
            directory = RUN / server.name
            directory.mkdir(parents=True)
            with free_ports(3) as found:
                ports = Ports(*found)
            launch = server.launch(ports, directory, models)
            # Bytecode is kept, as on any installation: a second start does not compile anew.
            base = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            started = time.monotonic()
            tree = ProcessTree(launch.command, directory / "log", {**base, **launch.environment}, directory)
            trees.append(tree)
            try:
                for case in plan.cases:
                    wait_for_answer(tree, server, case, ports, START_SECONDS)
            except (TimeoutError, RuntimeError) as error:
                print(f"absent: {error}", flush=True)
                results.absences.append(Absence(server.name, "", "", f"round {number + 1}: {error}"))
                continue
            running.append(_Running(server, ports, tree, time.monotonic() - started))
        yield running
    finally:
        end_all(trees)


def _look_at_idle(running: Sequence[_Running]) -> None:
    """Memory and processor time of servers that nobody asks, all up and every model used once."""
    time.sleep(IDLE_SECONDS)
    before = {each.server.name: each.tree.cpu_seconds() for each in running}
    time.sleep(2 * IDLE_SECONDS)
    for each in running:
        used = each.tree.cpu_seconds() - before[each.server.name]
        each.idle_cpu_percent = 100 * used / (2 * IDLE_SECONDS)
        each.idle_pss_bytes = each.loaded_pss_bytes = each.tree.pss_bytes()


def _ask(
    plan: Plan, number: int, turn: int, case: Case, encoding: Encoding, running: Sequence[_Running], results: Results
) -> None:
    able = []
    for each in rotated(running, turn):
        if encoding not in each.server.encodings:
            continue
        try:
            check(each.server, case, encoding, each.ports)
            began = time.monotonic()
            size = check(each.server, case, encoding, each.ports)
            able.append((each, size, time.monotonic() - began))
        except (WrongAnswerError, OSError) as error:
            print(f"absent: {each.server.name}, {case.model}, {encoding}: {error}", flush=True)
            results.absences.append(Absence(each.server.name, case.model, encoding, str(error)))
    for clients in plan.clients:
        for each, size, latency in able:
            seconds = plan.run_seconds(clients, latency)
            try:
                results.samples.append(_load(number, each, case, encoding, clients, seconds, size))
                # What the client left unfinished is finished before the next server is asked.
                check(each.server, case, encoding, each.ports, timeout=60)
            except (ValueError, WrongAnswerError, OSError) as error:
                reason = f"{clients} clients, {seconds:.1f} s: {error}"
                print(f"absent: {each.server.name}, {case.model}, {encoding}, {reason}", flush=True)
                results.absences.append(Absence(each.server.name, case.model, encoding, reason))


def _load(
    number: int, each: _Running, case: Case, encoding: Encoding, clients: int, seconds: float, answer_bytes: int
) -> Sample:
    request = each.server.request(case, encoding)
    body, log = RUN / "body", RUN / "h2load.log"
    body.write_bytes(request.body)
    log.unlink(missing_ok=True)
    pinned = clients == 1
    port = each.ports.grpc if encoding.is_grpc else each.ports.rest
    command = h2load.command(
        f"http://127.0.0.1:{port}",
        request,
        body,
        log,
        grpc=encoding.is_grpc,
        clients=clients,
        seconds=seconds,
        core=PINNED_CORE if pinned else None,
    )
    every_core = sorted(os.sched_getaffinity(0))
    if pinned:
        each.tree.pin([PINNED_CORE])
    before = each.tree.cpu_seconds()
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        if clients == 32:
            time.sleep(h2load.WARM_UP_SECONDS + seconds / 2)
            each.loaded_pss_bytes = max(each.loaded_pss_bytes, each.tree.pss_bytes())
        summary, _ = client.communicate(timeout=seconds + 60)
    finally:
        client.kill()
        client.wait()
    used = each.tree.cpu_seconds() - before
    if pinned:
        each.tree.pin(every_core)
    with log.open(encoding="ascii") as lines:
        load = h2load.read_load(summary, lines)
    if load.answer_bytes < 0.95 * answer_bytes:
        raise ValueError(
            f"answers of {load.answer_bytes:.0f} bytes, the right one has {answer_bytes}: it fails under load"
        )
    if load.failed > 0.01 * load.requests:
        raise ValueError(f"{load.failed} of {load.requests} requests failed")
    answers = load.requests * load.answer_bytes / answer_bytes  # those of the warm-up included
    return Sample(
        round=number,
        server=each.server.name,
        model=case.model,
        encoding=encoding,
        clients=clients,
        requests=load.requests,
        failed=load.failed,
        p50_us=load.p50_us,
        p95_us=load.p95_us,
        p99_us=load.p99_us,
        per_second=load.per_second,
        cpu_seconds_per_1000=1000 * used / answers,
    )


def _engine(number: int, case: Case, encoding: Encoding, seconds: float) -> EngineSample:
    """Latency on the core where servers are measured, then the throughput of two processes on both cores."""
    python = ENVIRONMENTS / "edgeml" / "bin" / "python"
    script = [str(python), str(BENCHMARKS / "floors" / "in_process.py"), "--model", str(case.file)]
    command = [*script, "--case", str(MODELS / f"{case.model}.npz"), "--seconds", str(seconds)]
    pinned = ["taskset", "--cpu-list", str(PINNED_CORE), *command]
    one = json.loads(subprocess.run(pinned, check=True, capture_output=True, text=True).stdout)
    rates = _together(2, [*command, "--wait"])
    return EngineSample(number, case.model, encoding, one["p50_us"], one["p95_us"], one["p99_us"], sum(rates))


def _together(count: int, command: Sequence[str]) -> list[float]:
    """Runs per second of processes that begin at the same time."""
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        for process in processes:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError("the in-process floor did not start")
        for process in processes:
            if process.stdin is not None:
                process.stdin.write("go\n")
                process.stdin.flush()
        return [json.loads(process.communicate(timeout=60)[0])["per_second"] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
