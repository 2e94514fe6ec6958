# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What live requests say of a candidate: those of the release that serves are asked of it again, one by one.

The release that serves keeps a share of its requests with their answers for a time (``POST /sample`` at its admin
socket). No client waits for that, and no client gets an answer of the candidate. What requests and answers hold stays
in the memory of the two releases and of this process; only counts and deviations leave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Tuple

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client, is_lost
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import (
    ABSOLUTE_TOLERANCE,
    RELATIVE_TOLERANCE,
    GoldenCase,
    compare,
    load_cases,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import percentile
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import AdminError, Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Model, Shadow

#: Requests that are needed to judge.
LEAST_REQUESTS = 20
#: Between two looks at how many requests have come.
LOOK_SECONDS = 0.25
#: Outputs that a message names.
NAMED = 3

#: Inputs and outputs of a request.
Live = Tuple[Tuple[Tensor, ...], Tuple[Tensor, ...]]


@dataclass
class Comparison:
    """What was found of one model: live requests `seen` in the time, `dropped` for lack of room, `asked` of the
    candidate again; how many of those it `failed`, or answered differently; why it was not compared, if it was not.

    `largest` maps each output that differed to its largest deviation; None where an output holds no numbers.
    """

    seen: int = 0
    dropped: int = 0
    asked: int = 0
    failed: int = 0
    differed: int = 0
    why_not: str = ""
    failure: str = ""
    largest: dict[str, float | None] = field(default_factory=dict)
    new_ms: list[float] = field(default_factory=list)
    old_ms: list[float] = field(default_factory=list)

    @property
    def share_different(self) -> float | None:
        """The share of requests that the candidate does not answer as they were; None if too few were compared."""
        return (self.failed + self.differed) / self.asked if not self.why_not and self.asked >= LEAST_REQUESTS else None

    @property
    def ratio(self) -> float | None:
        """The candidate's median latency over that of the release that serves, both asked in turns."""
        if len(self.new_ms) < LEAST_REQUESTS:
            return None
        return percentile(sorted(self.new_ms), 50) / percentile(sorted(self.old_ms), 50)

    def times_told(self) -> str:
        """Say how long both take."""
        words = []
        for who, times in (("", self.new_ms), (" of the release that serves", self.old_ms)):
            ordered = sorted(times)
            p50, p99 = (percentile(ordered, percent) for percent in (50, 99))
            words.append(f"p50 {p50:.3f} ms and p99 {p99:.3f} ms{who}")
        return f"{words[0]}, {words[1]}, in turns"

    def told(self) -> str:
        """Say what was found, in a line for people."""
        if self.why_not:
            return f"not compared: {self.why_not}"
        words = f"{self.asked} of {self.seen} live requests: {self.differed} differ, {self.failed} fail"
        if self.dropped:
            words += f", {self.dropped} more had no room"
        if self.asked < LEAST_REQUESTS:
            words += f"; fewer than {LEAST_REQUESTS} say nothing of the candidate"
        ordered = sorted(self.largest.items(), key=lambda item: (item[1] is not None, -(item[1] or 0.0)))
        for name, error in ordered[:NAMED]:
            words += f"; output '{name}' " + ("is another" if error is None else f"by up to {error:.3g}")
        return words


def compare_live(
    container: Container,
    models: Sequence[Model],
    connect: Callable[[Model], tuple[Client, Client]],
) -> dict[str, Comparison]:
    """Return what live requests say of the candidate's `models`, by name.

    `connect` returns clients of the candidate and of the release that serves. Takes at most as long as the models say
    for the sampling, and once more for the comparison. Raises UnreachableError if the candidate is gone.
    """
    found = {model.name: Comparison() for model in models}
    wanted = {model.name: model.shadow for model in models if model.shadow}
    seconds = max(shadow.seconds for shadow in wanted.values())
    try:
        counts, kept = _collect(container, wanted, time.monotonic() + seconds)
    except AdminError as error:
        return {name: Comparison(why_not=f"the release that serves keeps none ({error})") for name in found}
    finally:
        with suppress(AdminError, FleetError):
            container.ask_admin(container.active, "POST", "/sample", {})
    end = time.monotonic() + seconds
    for model in models:
        comparison = found[model.name]
        told = counts.get(model.name)
        if told is None:
            comparison.why_not = "the release that serves has no such model"
            continue
        comparison.seen, comparison.dropped = told["seen"], told["dropped"]
        absolute, relative = _tolerance(container.golden(model))
        candidate, serving = connect(model)
        with candidate, serving:
            for inputs, outputs in kept[model.name]:
                if time.monotonic() > end:
                    break
                case = GoldenCase("live", "", inputs, outputs, absolute, relative, None)
                _ask(comparison, model.name, case, candidate, serving)
    return found


def _collect(
    container: Container, wanted: Mapping[str, Shadow], end: float
) -> tuple[Mapping[str, Any], dict[str, list[Live]]]:
    """Wait until there are as many requests as wanted, or the time is over; return counts and requests by model."""
    served = {entry["name"] for entry in container.ask_admin(container.active, "GET", "/state")[0]["models"]}
    settings = {
        name: {key: getattr(shadow, key) for key in ("share", "seconds", "requests")}
        for name, shadow in wanted.items()
        if name in served
    }
    container.ask_admin(container.active, "POST", "/sample", settings)
    kept: dict[str, list[Live]] = {name: [] for name in wanted}
    while True:
        counts: Mapping[str, Any] = container.ask_admin(container.active, "GET", "/sample")[0]["models"]
        told, raw = container.ask_admin(container.active, "POST", "/sample/next")
        while told:
            kept[told["model"]].append(_tensors(told, raw))
            told, raw = container.ask_admin(container.active, "POST", "/sample/next")
        # A little later than the runtime itself, which ends it.
        if time.monotonic() > end + 1 or not any(count["open"] for count in counts.values()):
            return counts, kept
        time.sleep(LOOK_SECONDS)


def _tensors(told: Mapping[str, Any], raw: bytes) -> Live:
    """Return inputs and outputs of a request, which `told` describes and whose bytes are `raw`."""
    position = 0
    tensors: dict[str, list[Tensor]] = {"inputs": [], "outputs": []}
    for key, found in tensors.items():
        for one in told[key]:
            content = raw[position : position + one["bytes"]]
            position += one["bytes"]
            found.append(Tensor(one["name"], one["datatype"], tuple(one["shape"]), content))
    return tuple(tensors["inputs"]), tuple(tensors["outputs"])


def _ask(found: Comparison, name: str, case: GoldenCase, candidate: Client, serving: Client) -> None:
    """Ask both once more, the other one first each time; hold the candidate's answer against the live one."""
    found.asked += 1
    times: dict[Client, float] = {}
    try:
        request = candidate.prepare(name, "", case.inputs, [tensor.name for tensor in case.outputs])
        for client in (candidate, serving) if found.asked % 2 else (serving, candidate):
            start = time.perf_counter()
            try:
                response = client.send(request)
            except FleetError:
                if client is serving:
                    continue  # says nothing of the candidate
                raise
            times[client] = (time.perf_counter() - start) * 1000
            if client is candidate:
                _hold_against(found, case, client.decode(response))
    except FleetError as error:
        if is_lost(error):
            raise
        found.failed += 1
        found.failure = found.failure or error.what
    else:
        if len(times) == 2:
            found.new_ms.append(times[candidate])
            found.old_ms.append(times[serving])


def _hold_against(found: Comparison, case: GoldenCase, answered: Sequence[Tensor]) -> None:
    by_name = {tensor.name: tensor for tensor in answered}
    differs = False
    for expected in case.outputs:
        if by_name.get(expected.name) == expected:
            continue
        one = GoldenCase(case.name, "", (), (expected,), case.absolute, case.relative, None)
        result = compare(one, answered)
        if not result.passed:
            differs = True
            error, before = result.max_absolute_error, found.largest.get(expected.name, 0.0)
            found.largest[expected.name] = None if error is None or before is None else max(error, before)
    found.differed += differs


def _tolerance(golden: str | None) -> tuple[float, float]:
    """Return the tolerance of answers: the widest of the model's golden cases."""
    cases = load_cases(golden) if golden else []
    return (
        max((case.absolute for case in cases), default=ABSOLUTE_TOLERANCE),
        max((case.relative for case in cases), default=RELATIVE_TOLERANCE),
    )
