# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates that a candidate passes before it takes traffic: answers, latency, regression, errors, live
requests and memory.

Each gate is a row ``{"gate", "model", "protocol", "measured", "allowed", "unit", "passed"}``; `allowed` is None where
the inventory allows anything. A row of live requests, or of what could not be measured, has a ``note`` too, in words.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, cast

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import EngineError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    Client,
    UnreachableError,
    is_lost,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import ModelCheck, check_model
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import (
    ModelObjective,
    measure_in_turns,
    measure_model,
    missed_objective,
    percentile,
    prepare_request,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    endpoint_of,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.serving import Serving, ServingError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.shadow import Comparison, compare_live

#: Requests for a latency objective, and the seconds after which a slow model gets fewer.
WARMUP, SAMPLES, SECONDS = 20, 200, 5.0
#: Requests to each of two releases that are compared, and how many go to one of them before its turn ends.
REGRESSION_SAMPLES, TURN = 100, 5
#: Requests of a burst, for each client at once; a slow model gets LEAST_REQUESTS in all.
BURST_REQUESTS, BURST_SECONDS, LEAST_REQUESTS = 10, 2.0, 3
MIB = 1 << 20
#: Exit code of a process that was ended by SIGKILL.
KILLED = 137
#: Seconds that the engine may take to notice that a process has ended.
ENDING_SECONDS = 5.0

Row = Dict[str, Any]


class RefusedError(FleetError):
    """A candidate that must not take traffic; `gates` are the rows of all gates that were tried."""

    def __init__(self, error: FleetError, gates: Sequence[Row]) -> None:
        super().__init__(error.what, where=error.where, seen=error.seen, remedy=error.remedy)
        self.gates = list(gates)

    def as_result(self) -> dict[str, Any]:
        """Return keys for a module's failed result, with the gates."""
        return {**super().as_result(), "gates": self.gates}


class Gates:
    """The gates of one candidate. `timeout` bounds each request, in seconds."""

    def __init__(self, container: Container, candidate: str, timeout: float) -> None:
        self.container = container
        self.engine = container.engine
        self.candidate = candidate
        self.timeout = timeout
        self.rows: list[Row] = []

    def check(self, *, answers_only: bool = False) -> list[Row]:
        """Return the rows of all gates; with `answers_only` those of the answers alone.

        Raises RefusedError for the first model that does not pass, EngineError if the engine was away for a moment.
        """
        self._row("ready", "", "", 1, 1, "ready", True)
        try:
            for model in self.container.desired.models:
                asked = self._check_answers(model)
                if answers_only:
                    continue
                if model.has_objective:
                    asked += self._check_latency(model)
                if model.max_regression:
                    self._check_regression(model)
                if model.golden_cases and (model.concurrency or asked < LEAST_REQUESTS):
                    self._check_burst(model)
            if not answers_only:
                self._check_shadow()
                self._check_memory()
        except FleetError as error:
            reason = self._reason(error)
            if reason is error and isinstance(error, EngineError):
                raise  # the candidate is not to blame: it runs
            raise RefusedError(reason, self.rows) from error
        return self.rows

    # -- answers ---------------------------------------------------------------------------------------------------

    def _check_answers(self, model: Model) -> int:
        """All golden cases through the protocol of the objective, the first through each other one of the clients."""
        measured = self._protocol(model)
        asked = 0
        for protocol in sorted(self._protocols(model), key=lambda name: name != measured):
            cases = self.container.golden(model)
            with self._connect(protocol) as client:
                first = 1 if protocol != measured else None
                health = check_model(
                    client, ModelCheck(model.name, model.version, cases), client.server_metadata(), first=first
                )
            if health.failures and isinstance(health.failures[0], UnreachableError):
                raise health.failures[0]  # says nothing of the answers
            right = sum(result.passed for result in health.golden)
            asked += len(health.golden)
            self._row("golden", model.name, protocol, right, len(health.golden), "cases", not health.failures)
            if health.failures:
                raise health.failures[0]
        return asked

    # -- latency ---------------------------------------------------------------------------------------------------

    def _check_latency(self, model: Model) -> int:
        protocol = self._protocol(model)
        objective = ModelObjective(
            model.name, model.version, self.container.golden(model), model.p95_ms, model.p99_ms, model.p50_ms
        )
        with self._connect(protocol) as client:
            latency = measure_model(client, objective, samples=SAMPLES, warmup=WARMUP, max_seconds=SECONDS)
        for name, measured, allowed in latency.percentiles():
            passed = allowed is None or measured <= allowed
            self._row(name, model.name, protocol, round(measured, 3), allowed, "ms", passed)
        if not latency.met:
            raise missed_objective("the candidate, before it takes traffic", latency)
        return latency.samples

    def _check_regression(self, model: Model) -> None:
        """Ask the candidate and the release that serves, in turns; one that cannot answer the request is no measure."""
        protocol = self._protocol(model)
        active = endpoint_of(self.engine, self.container.active, protocol)
        if active is None:
            return
        golden = self.container.golden(model)
        with self._connect(protocol) as candidate, connect(active, timeout=self.timeout) as serving:
            request = prepare_request(candidate, ModelObjective(model.name, model.version, golden))
            try:
                before = prepare_request(serving, ModelObjective(model.name, "", golden))
                serving.decode(serving.send(before))
            except FleetError:
                return
            both = ((candidate, request), (cast(Client, Serving(serving)), before))
            try:
                new, old = measure_in_turns(both, REGRESSION_SAMPLES, TURN, SECONDS)
            except ServingError as error:
                self._row("regression", model.name, protocol, None, model.max_regression, "ratio", True)
                self.rows[-1]["note"] = f"not compared: the release that serves failed ({error.what}. {error.seen})"
                return
        new_ms, old_ms = (percentile(sorted(times), 50) / 1e6 for times in (new, old))
        ratio = new_ms / old_ms
        passed = ratio <= float(model.max_regression or math.inf)
        self._row("regression", model.name, protocol, round(ratio, 3), model.max_regression, "ratio", passed)
        if not passed:
            raise FleetError(
                f"The model {model.name} {model.version} is {ratio:.2f} times as slow as in the release that serves, "
                f"{model.max_regression:g} times is allowed",
                where="the candidate, before it takes traffic",
                seen=f"p50 {new_ms:.3f} ms, and {old_ms:.3f} ms of the release that serves, in turns",
                remedy="make the model faster, or raise slo.max_regression if the new time is fine",
            )

    # -- errors ----------------------------------------------------------------------------------------------------

    def _check_burst(self, model: Model) -> None:
        """Several clients at once, as many as the inventory declares, for a short time: none may get an error."""
        clients = model.concurrency or 1
        burst = _Burst(self, model, clients)
        at_once = "one client" if clients == 1 else f"{clients} clients at once"
        self._row("errors", model.name, burst.protocol, len(burst.errors), 0, "errors", not burst.errors)
        if burst.errors:
            # A connection that was lost may be the first sign that the candidate has ended.
            kind = UnreachableError if any(map(is_lost, burst.errors)) else FleetError
            first = burst.errors[0]
            raise kind(
                f"The model {model.name} {model.version} fails under {at_once}",
                where="the candidate, before it takes traffic",
                seen=f"{len(burst.errors)} of {burst.asked} requests failed; the first: "
                f"{first.what}. {first.seen}".strip(),
                remedy="see the message; more clients at once than the model can serve need a longer queue "
                "(options.queue) or a smaller slo.concurrency",
            )

    # -- live requests ---------------------------------------------------------------------------------------------

    def _check_shadow(self) -> None:
        """Ask the candidate what clients asked the release that serves; too few of them say nothing against it."""
        models = [model for model in self.container.desired.models if model.shadow]
        active = self.engine.container(self.container.active)
        if not models or active is None or not self.container.hands_over:
            return
        if active["Config"]["Labels"].get(RELEASE_LABEL) == self.container.release_id:
            return  # it is made anew since it is damaged

        def clients(model: Model) -> tuple[Client, Client]:
            protocol = self._protocol(model)
            serving = self.container.endpoint(self.container.active, protocol)
            return self._connect(protocol), connect(serving, timeout=self.timeout)

        if endpoint_of(self.engine, self.container.active, "rest") is None:
            found = {model.name: Comparison(why_not="no release of this runtime serves") for model in models}
        else:
            found = compare_live(self.container, models, clients)
        for model in models:
            self._judge_shadow(model, found[model.name])

    def _judge_shadow(self, model: Model, found: Comparison) -> None:
        share, ratio = found.share_different, found.ratio
        most = model.shadow.max_different if model.shadow else 0.0
        agrees = share is None or share <= most
        fast = ratio is None or ratio <= float(model.max_regression or math.inf)
        protocol = self._protocol(model)
        rounded = share if share is None else round(share, 4)
        self._row("shadow", model.name, protocol, rounded, most, "share", agrees)
        self.rows[-1]["note"] = found.told()
        if ratio is not None:
            self._row("shadow", model.name, protocol, round(ratio, 3), model.max_regression, "ratio", fast)
            self.rows[-1]["note"] = found.times_told()
        if not agrees:
            raise FleetError(
                f"The model {model.name} {model.version} answers {share:.1%} of live requests unlike the release that "
                f"serves, {most:.1%} are allowed",
                where="the candidate, before it takes traffic",
                seen=found.told() + (f"; the first failure: {found.failure}" if found.failure else ""),
                remedy="correct the model, or raise shadow.max_different if the new answers are meant",
            )
        if not fast:
            raise FleetError(
                f"The model {model.name} {model.version} is {ratio:.2f} times as slow for live requests as the release "
                f"that serves, {model.max_regression:g} times is allowed",
                where="the candidate, before it takes traffic",
                seen=found.times_told(),
                remedy="make the model faster, or raise slo.max_regression if the new time is fine",
            )

    # -- memory ----------------------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """The most that the candidate's processes have held, against what its container may use."""
        used = sum(most_resident_bytes(process) for process in self.engine.processes(self.candidate)) / MIB
        allowed = self.container.desired.limits.memory_mb or None
        passed = allowed is None or used <= allowed
        self._row("memory", "", "", round(used), allowed, "MiB", passed)
        if not passed:
            raise FleetError(
                f"The candidate needs {used:.0f} MiB of memory, {allowed} MiB are allowed",
                where=f"container {self.candidate}",
                remedy="raise requires.memory_mb of its models, or inference_runtime_memory_mb",
            )

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _reason(self, error: FleetError) -> FleetError:
        """Return what ended the candidate, if it has ended; what its clients saw of that says less."""
        state = self._state()
        deadline = time.monotonic() + ENDING_SECONDS
        while is_lost(error) and state.get("Running") and time.monotonic() < deadline:
            time.sleep(0.1)
            state = self._state()
        if state.get("Running"):
            return error
        ended, row = ended_candidate(self.container, self.candidate, state, error.what)
        if not self.rows or self.rows[-1]["passed"]:
            self.rows.append(row)
        return ended

    def _state(self) -> dict[str, Any]:
        return dict((self.engine.container(self.candidate) or {}).get("State", {}))

    def _protocols(self, model: Model) -> list[str]:
        """Return the protocols of the model's clients that this host can speak."""
        server = self.container.desired.server
        spoken = server.ports() if server else model.protocols
        return [protocol for protocol in ("rest", "grpc") if protocol in spoken] or ["rest"]

    def _protocol(self, model: Model) -> str:
        """Return the protocol that answers and times are judged by."""
        protocols = self._protocols(model)
        if model.has_objective or model.max_regression:
            return model.protocol if model.protocol in protocols else protocols[0]
        return protocols[0]

    def _connect(self, protocol: str) -> Client:
        return connect(self.container.endpoint(self.candidate, protocol), timeout=self.timeout)

    def _row(self, gate: str, model: str, protocol: str, measured: Any, allowed: Any, unit: str, passed: bool) -> None:
        self.rows.append(_row(gate, model, protocol, measured, allowed, unit, passed))


def not_started(container: Container, candidate: str, state: Mapping[str, Any]) -> RefusedError:
    """Return why a candidate that ended before it was ready is refused; `state` is what the engine says of it."""
    error, row = ended_candidate(container, candidate, state, "it never became ready", "ready")
    return RefusedError(error, [row])


def ended_candidate(
    container: Container, candidate: str, state: Mapping[str, Any], seen: str, gate: str = "errors"
) -> tuple[FleetError, Row]:
    """Return what is known of a candidate that has ended, and the row of the gate that it failed."""
    allowed = container.desired.limits.memory_mb
    # Not every kernel lets the engine know why a process was killed.
    if state.get("OOMKilled") or (allowed and state.get("ExitCode") == KILLED):
        error = FleetError(
            f"The candidate was killed for needing more than its {allowed} MiB of memory",
            where=f"container {candidate}",
            seen=seen,
            remedy="raise requires.memory_mb of its models, or inference_runtime_memory_mb",
        )
        return error, _row("memory", "", "", None, allowed, "MiB", False)
    error = FleetError(
        f"The candidate ended with code {state.get('ExitCode')} "
        + ("before it was ready" if gate == "ready" else "while it was tried"),
        where=f"container {candidate}",
        seen=f"{seen}; its last words: {container.engine.logs(candidate) or 'none'}",
        remedy="correct the model or its configuration; the release that served before still serves",
    )
    measured, allowed = (0, 1) if gate == "ready" else (1, 0)
    return error, _row(gate, "", "", measured, allowed, gate, False)


def _row(gate: str, model: str, protocol: str, measured: Any, allowed: Any, unit: str, passed: bool) -> Row:
    return {
        "gate": gate,
        "model": model,
        "protocol": protocol,
        "measured": measured,
        "allowed": allowed,
        "unit": unit,
        "passed": passed,
    }


class _Burst:
    """Clients that ask one model at the same time, each on a connection of its own; ends when all have."""

    def __init__(self, gates: Gates, model: Model, clients: int) -> None:
        self.protocol = gates._protocol(model)
        self.errors: list[FleetError] = []
        self.asked = 0
        self._gates = gates
        self._objective = ModelObjective(model.name, model.version, gates.container.golden(model))
        self._requests = max(LEAST_REQUESTS, clients * BURST_REQUESTS)
        self._end = time.monotonic() + BURST_SECONDS
        self._lock = threading.Lock()
        threads = [threading.Thread(target=self._ask) for _client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self) -> None:
        try:
            with self._gates._connect(self.protocol) as client:
                request = prepare_request(client, self._objective)
                while self._next():
                    client.decode(client.send(request))
        except FleetError as error:
            with self._lock:
                self.errors.append(error)

    def _next(self) -> bool:
        """Take one of the requests, if one is left."""
        with self._lock:
            over = self.asked >= self._requests or (self.asked >= LEAST_REQUESTS and time.monotonic() > self._end)
            self.asked += not over
            return not over


def most_resident_bytes(process: int) -> int:
    """Return the peak resident set of a process (VmHWM of proc_pid_status(5)), 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
