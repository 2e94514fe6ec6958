# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Serve at half capacity for an hour and see what grows; write build/bench/soak.md, .json and .svg.

Capacity is measured first, with h2load on the smallest model, REST and gRPC at the same time. Half
of it (``--share``) goes on until the end, over connections that are made anew every few seconds. Beside
it, clients ask every kind of model over both protocols and check the answers, on kept and on short
connections; an operator loads, unloads and replaces models; and in every second phase of a minute a
tenth of all that comes is hostile (soak_hostile.py), so that what honest clients wait with and
without it is compared.

Exit code 1 when memory, descriptors or threads grow beyond the bounds below, an answer is wrong, or
honest clients wait longer than the bound.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
os.environ["PYTHONPATH"] = sys.path[1]  # of the server process

import grpc  # type: ignore[import-untyped]
import http2
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from engines import Configured, described, scaled
from onnx import TensorProto, helper
from onnx_models import save
from python_models import python_model
from run import install_packages
from serving import SERVICE, Server, UnixConnection, ask
from serving_bench.environments import make_environment

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build" / "bench"
MEMORY_BOUND = 8.0  # MiB that resident memory may grow in the measured time, an hour by default
DESCRIPTOR_BOUND = 8  # more than before, once all clients are gone
THREAD_BOUND = 8
P99_BOUND = 2.0  # times that of the phase before, without hostile clients; the median of all such pairs
HOSTILE_SHARE = 0.1  # of all requests while there are some

SAMPLE_SECONDS = 5
ROUND_SECONDS = 15  # then h2load connects anew
CAPACITY_SECONDS = 10
CALLERS = 4
CALLS_PER_SECOND = 20  # of each caller
OPERATION_SECONDS = 5
IDLE_SECONDS = 3
PHASE_SECONDS = 60
SETTLE_SECONDS = 5  # after hostile clients came or went
LIMITS = {"body_bytes": 1 << 20, "receive_seconds": 2, "idle_seconds": IDLE_SECONDS, "connections": 200}


@dataclass(frozen=True)
class Sample:
    """The server and its child processes at one moment; memory in MiB."""

    seconds: float
    resident: float
    proportional: float
    descriptors: int
    threads: int
    processes: int
    answers: int
    wrong: int


class Tally:
    """What happened, counted from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []
        #: What honest clients waited for in each phase, in seconds.
        self.waits: dict[str, list[list[float]]] = {"quiet": [], "hostile": []}
        self._phase: list[float] | None = None

    def begin_phase(self, name: str) -> None:
        """From now on what is waited for belongs to a phase of that name, or to none when it is empty."""
        with self._lock:
            self._phase = [] if name else None
            if self._phase is not None:
                self.waits[name].append(self._phase)

    def waited(self, seconds: float) -> None:
        """An honest client has waited so long for its answer."""
        with self._lock:
            if self._phase is not None:
                self._phase.append(seconds)

    def add(self, what: str, count: int = 1) -> None:
        """Count what was meant to happen."""
        with self._lock:
            self.counts[what] += count

    def wrong(self, what: str, example: str) -> None:
        """Count what must not happen, with an example."""
        with self._lock:
            self.counts[f"wrong: {what}"] += 1
            if self.counts[f"wrong: {what}"] <= 3:
                self.examples.append(f"{what}: {example[:300]}")

    def total(self, wrong: bool) -> int:
        """How often something right or wrong happened."""
        with self._lock:
            return sum(count for what, count in self.counts.items() if what.startswith("wrong") == wrong)


def main() -> None:
    """Run the soak and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="(default: 60)")
    parser.add_argument("--share", type=float, default=0.5, help="load as a share of the capacity (default: 0.5)")
    arguments = parser.parse_args()
    install_packages()
    with tempfile.TemporaryDirectory() as directory:
        result = soak(Path(directory), arguments.minutes * 60, arguments.share)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "soak.json").write_text(json.dumps(result, indent=1))
    (OUTPUT / "soak.md").write_text(report(result))
    print(report(result), flush=True)
    chart = Path(__file__).with_name("soak_chart.py")
    subprocess.run([make_environment("driver"), chart, OUTPUT / "soak.json"], check=True)
    sys.exit(1 if result["failures"] else 0)


def soak(directory: Path, seconds: float, share: float) -> dict[str, Any]:
    """Everything that was measured, as it goes into the JSON file."""
    models = make_models(directory)
    entries: Any = [Configured(entry) for entry in models.values()]
    server = Server.start(directory, entries, limits=LIMITS)
    tally = Tally()
    try:
        server.wait_ready()
        bodies = {"rest": directory / "rest.body", "grpc": directory / "grpc.body"}
        bodies["rest"].write_bytes(json.dumps(request_document([1.0, 2.0])).encode())
        bodies["grpc"].write_bytes(http2.message(request_message("tiny", [1.0, 2.0]).SerializeToString()))
        capacity = measure_capacity(server, bodies)
        print(f"capacity: {capacity} requests per second", flush=True)
        per_second = sum(capacity.values()) * share + CALLERS * CALLS_PER_SECOND
        hostile_per_second = per_second * HOSTILE_SHARE / (1 - HOSTILE_SHARE)
        stop = threading.Event()
        samples: list[Sample] = []
        started = time.monotonic()
        with running(tally, stop) as start:
            for protocol, body in bodies.items():
                start(half_load, server, tally, stop, protocol, body, capacity[protocol] * share)
            for index in range(CALLERS):
                start(caller, server, tally, stop, index)
            warm_up = min(60, seconds / 10)
            start(alternate, server, tally, stop, hostile_per_second, warm_up / 3)
            # What is made at the first use of anything is there by now.
            stop.wait(warm_up)
            stop.set()
        tally.waits = {"quiet": [], "hostile": []}
        time.sleep(2 * IDLE_SECONDS)
        before = sample(server, started, tally)
        stop.clear()
        with running(tally, stop) as start:
            for protocol, body in bodies.items():
                start(half_load, server, tally, stop, protocol, body, capacity[protocol] * share)
            for index in range(CALLERS):
                start(caller, server, tally, stop, index)
            start(alternate, server, tally, stop, hostile_per_second, min(PHASE_SECONDS, seconds / 8))
            start(operate, server, tally, stop, models)
            end = time.monotonic() + seconds
            while time.monotonic() < end and server.process.poll() is None:
                samples.append(sample(server, started, tally))
                if len(samples) % (60 // SAMPLE_SECONDS) == 0:
                    print(samples[-1], flush=True)
                stop.wait(SAMPLE_SECONDS)
            stop.set()
        time.sleep(2 * IDLE_SECONDS)
        after = sample(server, started, tally)
        log = server.log
        exit_code = server.stop()
    finally:
        server.end()
    return judged(
        {
            "seconds": seconds,
            "capacity": capacity,
            "share": share,
            "hostile_per_second": hostile_per_second,
            "waits": {name: [waits(one) for one in phases if one] for name, phases in tally.waits.items()},
            "counts": dict(sorted(tally.counts.items())),
            "examples": tally.examples,
            "before": asdict(before),
            "after": asdict(after),
            "samples": [asdict(one) for one in samples],
            "exit_code": exit_code,
            "tracebacks": log.count("Traceback"),
        }
    )


def waits(phase: list[float]) -> dict[str, float]:
    """What the honest clients of a phase waited for, in milliseconds."""
    p50, p99 = (float(value) * 1000 for value in np.percentile(phase, [50, 99]))
    return {"answers": len(phase), "p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


def make_models(root: Path) -> dict[str, dict[str, Any]]:
    """The entries in "models", by what they are for."""
    accumulator = save(
        root,
        "accumulator",
        helper.make_graph(
            [helper.make_node("Add", ["x", "sum_in"], ["y"]), helper.make_node("Identity", ["y"], ["sum_out"])],
            "accumulator",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "sum_in")],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("y", "sum_out")],
        ),
    )
    code = """
        import numpy as np

        def load(context):
            return None

        def infer(inputs):
            return {"y": np.asarray(inputs["x"] * 5, dtype=np.float32)}
    """
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    python = python_model(root, "python", code, ({**tensor, "name": "x"},), ({**tensor, "name": "y"},), isolated=True)
    states = [{"input": "sum_in", "output": "sum_out"}]
    return {
        "tiny": scaled(root, 2.0, name="tiny"),
        "threaded": scaled(root, 3.0, name="threaded", products=2000),
        "batched": scaled(root, 4.0, name="batched", batching={"max_size": 8, "max_delay_ms": 2}),
        "sequence": described(accumulator.path, "accumulator", "1.0.0", {"sequence": {"states": states}}),
        "python": {"name": "python", "version": "1.0.0", "path": str(python.path)},
        "switched": scaled(root, 6.0, name="switched"),
        "visitor": scaled(root, 7.0, name="visitor"),
    } | {"switched again": scaled(root, 6.0, version="1.1.0", name="switched")}


# ---- the load ----------------------------------------------------------------------------------------------------


@contextmanager
def running(tally: Tally, stop: threading.Event) -> Iterator[Callable[..., object]]:
    """Run functions at the same time until they end; what one raises is counted as wrong."""
    with ThreadPoolExecutor(CALLERS + 8) as pool:

        def guarded(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            try:
                function(*arguments)
            except Exception as error:
                tally.wrong("the soak itself", f"{function.__name__}: {error!r}")

        try:
            yield lambda function, *arguments: pool.submit(guarded, function, arguments)
        finally:
            stop.set()


def measure_capacity(server: Server, bodies: dict[str, Path]) -> dict[str, float]:
    """Requests per second of both protocols when both are asked as fast as they answer."""
    with ThreadPoolExecutor(2) as pool:
        runs = {
            protocol: pool.submit(h2load, server, protocol, body, CAPACITY_SECONDS, None)
            for protocol, body in bodies.items()
        }
    return {protocol: run.result()[0] / CAPACITY_SECONDS for protocol, run in runs.items()}


def half_load(
    server: Server, tally: Tally, stop: threading.Event, protocol: str, body: Path, per_second: float
) -> None:
    """Rounds of h2load at a fixed rate."""
    while not stop.is_set():
        done, failed = h2load(server, protocol, body, ROUND_SECONDS, per_second)
        tally.add(f"h2load {protocol}", done)
        if failed:
            tally.wrong(f"h2load {protocol}", f"{failed} of {done + failed} failed")


def h2load(server: Server, protocol: str, body: Path, seconds: int, per_second: float | None) -> tuple[int, int]:
    """Answers, and requests without a good one, of four connections."""
    clients = 4
    if protocol == "rest":
        url = f"http://127.0.0.1:{server.rest_port}/v2/models/tiny/infer"
        headers = ["content-type: application/json"]
    else:
        url = f"http://127.0.0.1:{server.grpc_port}{SERVICE}ModelInfer"
        headers = ["content-type: application/grpc", "te: trailers"]
    pace = [f"--duration={seconds}"]
    if per_second is not None:
        each = max(1, int(per_second / clients))
        pace = [f"--requests={each * clients * seconds}", f"--rps={each}"]
    output = subprocess.run(
        [
            *("h2load", *(["--h1"] if protocol == "rest" else []), f"--clients={clients}", "--threads=1", *pace),
            *(f"--data={body}", *(f"--header={header}" for header in headers), url),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    counts = re.search(r"^requests: .*, (\d+) succeeded, (\d+) failed", output, re.MULTILINE)
    if counts is None:
        raise ValueError(f"h2load said: {output[-500:]}")
    return int(counts[1]), int(counts[2])


def caller(server: Server, tally: Tally, stop: threading.Event, index: int) -> None:
    """Ask all kinds of models and check every answer; connections are kept for a while or closed at once."""
    chance = random.Random(index)  # noqa: S311 - no secret: the same choices in each run
    factors = {"tiny": 2.0, "threaded": 3.0, "batched": 4.0, "python": 5.0, "switched": 6.0, "accumulator": 1.0}
    sums: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    while not stop.is_set():
        with Client(server, chance.choice(["rest", "grpc"])) as client:
            for _ in range(chance.choice([1, 1, 20])):
                model = chance.choice(list(factors))
                x = np.array([chance.randrange(100), chance.randrange(100)], dtype=np.float32)
                expected = x * factors[model]
                parameters: dict[str, Any] = {}
                if model == "accumulator":
                    sequence = f"{index}-{chance.randrange(10)}"
                    parameters = {"sequence_id": sequence, "sequence_start": sequence not in sums}
                    expected = sums[sequence] = sums.get(sequence, np.zeros(2, np.float32)) + x
                    if chance.randrange(10) == 0:
                        parameters["sequence_end"] = True
                        del sums[sequence]
                began = time.perf_counter()
                try:
                    seen = client.infer(model, x.tolist(), parameters)
                    tally.waited(time.perf_counter() - began)
                except (OSError, ValueError, grpc.RpcError) as error:
                    tally.wrong(f"{client.protocol} {model}", repr(error))
                    sums.pop(parameters.get("sequence_id", ""), None)
                    break
                if seen == expected.tolist():
                    tally.add(f"{client.protocol} {model}")
                else:
                    tally.wrong(f"{client.protocol} {model}", f"{seen}, expected {expected.tolist()}")
                if stop.wait(1 / CALLS_PER_SECOND):
                    break


class Client:
    """One connection of either protocol."""

    def __init__(self, server: Server, protocol: str) -> None:
        self.protocol = protocol
        self._http = server.connect()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._channel.close()

    def infer(self, model: str, x: list[float], parameters: dict[str, Any]) -> list[float]:
        """What the model answers to ``x``. Raises OSError, ValueError or grpc.RpcError."""
        if self.protocol == "rest":
            body = json.dumps(request_document(x, **parameters))
            self._http.request("POST", f"/v2/models/{model}/infer", body)
            response = self._http.getresponse()
            content = response.read()
            if response.status != 200:
                raise ValueError(f"{response.status} {content!r}")
            values: list[float] = json.loads(content)["outputs"][0]["data"]
            return values
        call = self._channel.unary_unary(
            SERVICE + "ModelInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelInferResponse.FromString,
        )
        answer = call(request_message(model, x, **parameters), timeout=30)
        return [float(value) for value in np.frombuffer(answer.raw_output_contents[0], "<f4")]


def request_document(x: list[float], **parameters: Any) -> dict[str, Any]:
    """A REST inference."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": x}
    return {"inputs": [tensor], "outputs": [{"name": "y"}], "parameters": parameters}


def request_message(model: str, x: list[float], **parameters: Any) -> messages.ModelInferRequest:
    """A gRPC inference."""
    message = messages.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(x)
    message.outputs.add(name="y")
    for name, value in parameters.items():
        field = "bool_param" if isinstance(value, bool) else "string_param"
        setattr(message.parameters[name], field, value)
    return message


def alternate(server: Server, tally: Tally, stop: threading.Event, per_second: float, phase: float) -> None:
    """Phases without and with the hostile tenth, in turns: one is compared with the other on the same machine."""
    while not stop.is_set():
        for is_hostile in (False, True):
            with hostile(server, tally, per_second) if is_hostile else nullcontext():
                stop.wait(min(SETTLE_SECONDS, phase / 4))
                tally.begin_phase("hostile" if is_hostile else "quiet")
                stop.wait(phase)
                tally.begin_phase("")


@contextmanager
def hostile(server: Server, tally: Tally, per_second: float) -> Iterator[None]:
    """Hostile clients; what they did is counted."""
    command = [
        sys.executable,
        Path(__file__).with_name("soak_hostile.py"),
        server.rest_port,
        server.grpc_port,
        per_second,
    ]
    with subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            done, _ = process.communicate()
            for name, count in json.loads(done).items():
                tally.add(f"hostile: {name}", count)


def operate(server: Server, tally: Tally, stop: threading.Event, models: dict[str, dict[str, Any]]) -> None:
    """Replace a model by its other version, and load and unload another, again and again."""
    turn = 0
    while not stop.wait(OPERATION_SECONDS):
        turn += 1
        absent = {"switched" if turn % 2 else "switched again", "visitor" if turn // 2 % 2 else ""}
        server.change_config(models=[model for key, model in models.items() if key not in absent])
        try:
            answer = ask(UnixConnection(server.admin_socket), "POST", "/reload")
        except OSError as error:
            tally.wrong("reload", repr(error))
            continue
        if answer.status == 200:
            tally.add("reload")
        else:
            tally.wrong("reload", answer.body.decode())


# ---- what is measured --------------------------------------------------------------------------------------------


def sample(server: Server, started: float, tally: Tally) -> Sample:
    """The server process and its children now."""
    resident = proportional = 0
    descriptors = threads = 0
    processes = family(server.process.pid)
    for pid in processes:
        root = Path(f"/proc/{pid}")
        try:
            status = (root / "status").read_text()
            memory = (root / "smaps_rollup").read_text()
            opened = len(list((root / "fd").iterdir()))
        except OSError:  # it has just ended
            continue
        resident += int(re.findall(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[0])
        proportional += int(re.findall(r"^Pss:\s+(\d+)", memory, re.MULTILINE)[0])
        threads += int(re.findall(r"^Threads:\s+(\d+)", status, re.MULTILINE)[0])
        descriptors += opened
    return Sample(
        seconds=round(time.monotonic() - started, 1),
        resident=round(resident / 1024, 2),
        proportional=round(proportional / 1024, 2),
        descriptors=descriptors,
        threads=threads,
        processes=len(processes),
        answers=tally.total(wrong=False),
        wrong=tally.total(wrong=True),
    )


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the growth of memory per hour and a list of what is beyond its bound."""
    samples = result["samples"]
    settled = [one for one in samples if one["seconds"] - samples[0]["seconds"] >= min(600, result["seconds"] / 6)]
    hours = (settled[-1]["seconds"] - settled[0]["seconds"]) / 3600
    growth = {}
    for key in ("resident", "proportional"):
        growth[key] = slope([one["seconds"] / 3600 for one in settled], [one[key] for one in settled])
    failures = []
    if growth["resident"] * hours > MEMORY_BOUND:
        failures.append(f"resident memory grew by {growth['resident'] * hours:.1f} MiB, at most {MEMORY_BOUND:g}")
    for key, bound in (("descriptors", DESCRIPTOR_BOUND), ("threads", THREAD_BOUND)):
        more = result["after"][key] - result["before"][key]
        if more > bound:
            failures.append(f"{more} more {key} than before, at most {bound}")
    p99 = {name: median([one["p99_ms"] for one in phases]) for name, phases in result["waits"].items() if phases}
    # Neighbours are compared: what else the machine does in an hour is alike in both.
    pairs = list(zip(result["waits"]["quiet"], result["waits"]["hostile"], strict=False))
    ratio = median([hostile["p99_ms"] / quiet["p99_ms"] for quiet, hostile in pairs]) if pairs else None
    if ratio is None or ratio > P99_BOUND:
        failures.append(f"honest clients' p99 is {ratio} times that without hostile ones, at most {P99_BOUND:g}")
    if wrong := result["after"]["wrong"]:
        failures.append(f"{wrong} wrong answers or failed operations")
    if result["exit_code"] or result["tracebacks"]:
        failures.append(f"exit code {result['exit_code']}, {result['tracebacks']} tracebacks in the log")
    return result | {
        "p99_ms": p99,
        "p99_ratio": ratio,
        "mib_per_hour": growth,
        "settled_hours": hours,
        "failures": failures,
    }


def slope(x: list[float], y: list[float]) -> float:
    """The median of the slopes between all pairs of points: single peaks do not move it (Theil and Sen)."""
    first, second = np.triu_indices(len(x), 1)
    xs, ys = np.array(x), np.array(y)
    return float(np.median((ys[second] - ys[first]) / (xs[second] - xs[first])))


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    before, after, samples = result["before"], result["after"], result["samples"]
    resident = [one["resident"] for one in samples]
    answers = after["answers"] - before["answers"]
    p99 = [f"{name} {milliseconds:.1f} ms" for name, milliseconds in result["p99_ms"].items()]
    kinds = {name: count for name, count in result["counts"].items() if name.startswith("hostile: ")}
    rows = [
        ("Duration", f"{result['seconds'] / 60:g} minutes"),
        ("Capacity, REST and gRPC together", " + ".join(f"{rate:,.0f}/s" for rate in result["capacity"].values())),
        (f"Answered at {result['share']:.0%} of it", f"{answers:,} ({answers / result['seconds']:,.0f}/s)"),
        ("Models replaced, loaded or unloaded", f"{result['counts'].get('reload', 0):,} times"),
        (f"Hostile, of {len(kinds)} kinds", f"{sum(kinds.values()):,}; meant {result['hostile_per_second']:,.0f}/s"),
        ("p99 of honest clients, median of the phases", ", ".join(p99)),
        (
            "Its ratio, median of neighbouring phases",
            f"{result['p99_ratio']:.2f}" if result["p99_ratio"] else "not measured",
        ),
        ("Wrong answers, failed operations", f"{after['wrong']}"),
        ("Resident memory, with child processes", f"{min(resident):.1f} to {max(resident):.1f} MiB"),
        ("Its growth after warm-up", f"{result['mib_per_hour']['resident']:+.2f} MiB per hour"),
        ("Growth of proportional memory", f"{result['mib_per_hour']['proportional']:+.2f} MiB per hour"),
        ("Resident, idle before and after", f"{before['resident']:.1f} and {after['resident']:.1f} MiB"),
        ("Descriptors, idle before and after", f"{before['descriptors']} and {after['descriptors']}"),
        ("Threads, idle before and after", f"{before['threads']} and {after['threads']}"),
        ("Verdict", "; ".join(result["failures"]) or "within all bounds"),
    ]
    bounds = (
        f"Bounds: {MEMORY_BOUND:g} MiB of growth in the measured time, {DESCRIPTOR_BOUND} descriptors, "
        f"{THREAD_BOUND} threads, no wrong answer, p99 {P99_BOUND:g} times that without hostile clients."
    )
    lines = ["# Soak", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), "", bounds]
    lines += ["", *(f"- {example}" for example in result["examples"])] if result["examples"] else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
