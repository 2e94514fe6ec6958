# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""``edgeml-runtime check``: does a server of the protocol answer, answer right, and answer in time?

Knows nothing of the server but the protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeml_runtime.cli.table import described, table
from edgeml_runtime.client.connect import connect
from edgeml_runtime.client.protocol import Access, Client, Refused, Target, Unreachable
from edgeml_runtime.engine.golden import GoldenCase, read_case, specs_of_case, zeros
from edgeml_runtime.errors import StartError
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec

#: Requests that are measured however slow the model is.
LEAST_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to check. ``models``: pairs of name and version, an empty version for the server's own; none: all.

    ``golden``: files of golden cases by model; the empty name stands for every model.
    ``p95_ms``: milliseconds that the 95th percentile of latency may take, None for no objective.
    ``seconds``: time that the measured requests of one model may take in all.
    """

    models: Sequence[tuple[str, str]]
    golden: Mapping[str, Sequence[Path]]
    p95_ms: float | None
    samples: int
    warmup: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. ``model`` is empty for the server itself; ``values``: what was measured."""

    model: str
    check: str
    ok: bool
    detail: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """All checks of one server; not reachable: it did not answer, or no longer."""

    url: str
    reachable: bool = True
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check succeeded."""
        return self.reachable and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """As a JSON object; times in milliseconds."""
        return {
            "url": self.url,
            "ok": self.ok,
            "reachable": self.reachable,
            "checks": [
                {"model": check.model, "check": check.check, "ok": check.ok, "detail": check.detail, **check.values}
                for check in self.checks
            ],
        }


def check_server(target: Target, access: Access, plan: Plan) -> Report:
    """Do all checks of one server, one after the other on one connection. Raises ConfigurationError."""
    report = Report(target.url)
    client = connect(target, access)
    try:
        _check_server(client, plan, report)
    except Unreachable as error:
        report.reachable = False
        report.checks.append(Check("", "connection", False, str(error)))
    finally:
        client.close()
    return report


def as_text(report: Report) -> str:
    """A table for people."""
    rows = [(check.model or "-", check.check, "ok" if check.ok else "FAILED", check.detail) for check in report.checks]
    return f"{report.url}\n{table(('MODEL', 'CHECK', 'RESULT', 'DETAIL'), rows, indent='  ')}"


def _check_server(client: Client, plan: Plan, report: Report) -> None:
    for name, ask in (("live", client.live), ("ready", client.ready)):
        try:
            ok = ask()
            detail = "" if ok else "the server says that it is not"
        except Refused as error:
            ok, detail = False, str(error)
        report.checks.append(Check("", name, ok, detail))
    try:
        server = client.server_metadata()
        extensions = f", extensions {', '.join(server.extensions)}" if server.extensions else ""
        report.checks.append(Check("", "metadata", True, f"{server.name} {server.version}{extensions}"))
    except Refused as error:
        report.checks.append(Check("", "metadata", False, str(error)))
    models = plan.models
    if not models:
        try:
            models = [(entry.name, entry.version) for entry in client.index()]
        except Refused as error:
            report.checks.append(Check("", "index", False, f"{error}; name the models with --model"))
        else:
            if not models:
                report.checks.append(Check("", "index", False, "the server has no model"))
    if plan.golden.get("") and len(models) > 1:
        detail = f"the server has {len(models)} models; say whose the cases are: --golden MODEL=DIR"
        report.checks.append(Check("", "golden", False, detail))
        return
    for name, version in models:
        report.checks += _check_model(client, plan, name, version)


def _check_model(client: Client, plan: Plan, name: str, version: str) -> list[Check]:
    label = f"{name} {version}".rstrip()
    files = [*plan.golden.get(name, ()), *plan.golden.get("", ())]
    checks: list[Check] = []
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()
    try:
        ready = client.model_ready(name, version)
        checks.append(Check(label, "ready", ready, "" if ready else "the server says that it is not"))
        model = client.model_metadata(name, version)
        inputs, outputs = model.inputs, model.outputs
        detail = f"{model.platform or 'no platform'}: {described(inputs)} -> {described(outputs)}"
        checks.append(Check(label, "metadata", True, detail))
    except Refused as error:
        checks.append(Check(label, "metadata" if checks else "ready", False, str(error)))
        if not files:
            return checks
    request: Any = None
    for file in files:
        try:
            of_case, expected = specs_of_case(file)
            case = read_case(file, of_case, expected)
            tensors = [(spec, case.inputs[spec.name]) for spec in of_case.values()]
            encoded = client.encode(name, version, tensors, list(case.outputs), case.parameters)
            checks.append(_compare(label, case, client.decode(client.exchange(encoded))))
            request = request or encoded
        except (StartError, Refused) as error:
            checks.append(Check(label, f"golden {file.name}", False, str(error)))
    try:
        if not files:
            request = _zeros(client, name, version, inputs)
        if request is not None:
            checks.append(_measure(client, plan, label, request))
    except Refused as error:
        checks.append(Check(label, "latency", False, str(error)))
    return checks


def _zeros(client: Client, name: str, version: str, inputs: Sequence[TensorSpec]) -> Any:
    """A request of zeros that the model can run on.

    Raises Refused when the server does not tell enough of the model, or the model runs on none.
    """
    if not inputs or any(spec.datatype not in DTYPES for spec in inputs):
        raise Refused("the metadata tells no inputs to make a request of; give --golden")
    refusal: Refused | None = None
    for arrays in zeros(inputs):
        request = client.encode(name, version, [(spec, arrays[spec.name]) for spec in inputs], [], {})
        try:
            client.exchange(request)
        except Refused as error:
            refusal = refusal or error
        else:
            return request
    raise Refused(f"the model runs on zeros of no size that was tried; give --golden: {refusal}")


def _compare(label: str, case: GoldenCase, answer: Mapping[str, Array]) -> Check:
    name = f"golden {case.file.name}"
    if missing := [output for output in case.outputs if output not in answer]:
        return Check(label, name, False, f"the answer lacks output {', '.join(missing)}; it has {', '.join(answer)}")
    if not case.outputs:
        return Check(label, name, True, "answered; the case expects nothing")
    error = max(_largest_error(answer[output], expected) for output, expected in case.outputs.items())
    difference = case.difference(answer)
    return Check(
        label,
        name,
        not difference,
        difference or f"largest error {error:.3g}",
        {"largest_error": error if np.isfinite(error) else None},
    )


def _largest_error(seen: Array, expected: Array) -> float:
    """The largest absolute difference; infinity for tensors that cannot be compared or are no numbers and differ."""
    if seen.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "Ob":
        return 0.0 if np.array_equal(seen, expected) else float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.abs(seen.astype(np.float64) - expected.astype(np.float64))
    same = (seen == expected) | (np.isnan(seen) & np.isnan(expected) if expected.dtype.kind == "f" else False)
    return float(np.max(np.where(same, 0, np.nan_to_num(difference, nan=np.inf)), initial=0.0))


def _measure(client: Client, plan: Plan, label: str, request: Any) -> Check:
    """Latency as one client on one connection sees it: sending a request until all of its answer is there."""
    for _ in range(plan.warmup):
        client.exchange(request)
    durations: list[float] = []
    began = perf_counter()
    while len(durations) < plan.samples:
        started = perf_counter()
        client.exchange(request)
        finished = perf_counter()
        durations.append((finished - started) * 1000)
        if finished - began > plan.seconds and len(durations) >= LEAST_SAMPLES:
            break
    p50, p95, p99 = (round(float(value), 3) for value in np.percentile(durations, (50, 95, 99)))
    ok = plan.p95_ms is None or p95 <= plan.p95_ms
    objective = "" if plan.p95_ms is None else f"; p95 may take {plan.p95_ms:g} ms"
    return Check(
        label,
        "latency",
        ok,
        f"p50 {p50:.3f} ms, p95 {p95:.3f} ms, p99 {p99:.3f} ms of {len(durations)} requests{objective}",
        {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "samples": len(durations), "objective_p95_ms": plan.p95_ms},
    )
