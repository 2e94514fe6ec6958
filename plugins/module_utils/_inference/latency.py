# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency of a served model, as one client on one connection sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    BINARY_EXTENSION,
    Client,
    PreparedRequest,
    model_subject,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import load_cases
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

#: Requests that are measured however slow the model is.
LEAST_SAMPLES = 5


@dataclass(frozen=True)
class ModelObjective:
    """A model to measure and what is allowed, in milliseconds; None allows anything.

    `golden` is a directory of golden cases, the first of which is the request; without it the request is made of zeros.
    """

    name: str
    version: str = ""
    golden: str | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p50_ms: float | None = None


@dataclass(frozen=True)
class Latency:
    """Latencies of one model in milliseconds, and whether they meet its objective."""

    model: ModelObjective
    samples: int
    mean_ms: float
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    def percentiles(self) -> list[tuple[str, float, float | None]]:
        """Return name, measured and allowed milliseconds of each percentile that can be an objective."""
        return [
            ("p50", self.p50_ms, self.model.p50_ms),
            ("p95", self.p95_ms, self.model.p95_ms),
            ("p99", self.p99_ms, self.model.p99_ms),
        ]

    @property
    def excesses(self) -> tuple[str, ...]:
        """Say which percentiles are above what is allowed."""
        return tuple(
            f"{name} {measured:.3f} ms measured, {allowed:g} ms allowed"
            for name, measured, allowed in self.percentiles()
            if allowed is not None and measured > allowed
        )

    @property
    def met(self) -> bool:
        return not self.excesses

    def as_result(self) -> dict[str, Any]:
        """Return the keys of a module's result, times in milliseconds with the resolution of a microsecond."""
        return {
            "name": self.model.name,
            "version": self.model.version,
            "samples": self.samples,
            "mean_ms": round(self.mean_ms, 3),
            "min_ms": round(self.min_ms, 3),
            "p50_ms": round(self.p50_ms, 3),
            "p95_ms": round(self.p95_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "max_ms": round(self.max_ms, 3),
            "objective": {f"{name}_ms": allowed for name, _measured, allowed in self.percentiles()},
            "met": self.met,
        }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile by the nearest-rank method: the smallest value that `percent` % of the values do not exceed.

    Parameters
    ----------
    ordered : sequence of float
        At least one value, in ascending order.
    percent : float
        Above 0, at most 100.
    """
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def measure(
    client: Client, request: PreparedRequest, samples: int, warmup: int, max_seconds: float = math.inf
) -> list[int]:
    """Return how long each of `samples` requests took, one after another, in nanoseconds.

    A time begins before the request is written and ends when the response has been read; building the one and decoding
    the other do not count. `warmup` requests go before and are not measured. Slow models get fewer requests: warm-up
    and measurement each end with the request that exceeds `max_seconds`, the measurement not before LEAST_SAMPLES.

    Raises
    ------
    FleetError
        The server refused a request or did not answer.
    """
    end = time.monotonic() + max_seconds
    for _request in range(warmup):
        client.send(request)
        if time.monotonic() > end:
            break
    durations: list[int] = []
    end = time.monotonic() + max_seconds
    while len(durations) < samples and (len(durations) < LEAST_SAMPLES or time.monotonic() < end):
        start = time.perf_counter_ns()
        client.send(request)
        durations.append(time.perf_counter_ns() - start)
    return durations


def measure_model(
    client: Client,
    model: ModelObjective,
    *,
    samples: int,
    warmup: int,
    binary: bool = True,
    max_seconds: float = math.inf,
) -> Latency:
    """Measure the latency of a model, by requests as `measure` makes them.

    Raises
    ------
    FleetError
        The golden cases cannot be read, or the server refused a request or did not answer.
    """
    request = prepare_request(client, model, binary)
    client.decode(client.send(request))  # What is not an answer must not be measured.
    ordered = sorted(duration / 1e6 for duration in measure(client, request, samples, warmup, max_seconds))
    return Latency(
        model=model,
        samples=len(ordered),
        mean_ms=math.fsum(ordered) / len(ordered),
        min_ms=ordered[0],
        p50_ms=percentile(ordered, 50),
        p95_ms=percentile(ordered, 95),
        p99_ms=percentile(ordered, 99),
        max_ms=ordered[-1],
    )


def missed_objective(endpoint: str, latency: Latency) -> FleetError:
    """Return the error for a latency above its objective."""
    return FleetError(
        f"The {model_subject(latency.model.name, latency.model.version)} misses its latency objective "
        f"({', '.join(latency.excesses)}, over {latency.samples} requests)",
        where=endpoint,
        seen=f"p50 {latency.p50_ms:.3f} ms, p95 {latency.p95_ms:.3f} ms, p99 {latency.p99_ms:.3f} ms, "
        f"max {latency.max_ms:.3f} ms",
        remedy="look for other load on the host and the network, give the model more engine threads, "
        "or allow more time if the objective was wrong",
    )


def measure_in_turns(
    pairs: Sequence[tuple[Client, PreparedRequest]], samples: int, turn: int, max_seconds: float
) -> list[list[int]]:
    """Return how long `samples` requests to each of several servers took, in nanoseconds, a list for each server.

    Each server gets `turn` requests, then the next one, so that what else the host does meets all of them alike. Ends
    earlier after `max_seconds`, not before each has had LEAST_SAMPLES. The first turn of each is not measured.

    Raises
    ------
    FleetError
        A server refused a request or did not answer.
    """
    durations: list[list[int]] = [[] for _pair in pairs]
    end = time.monotonic() + max_seconds
    for client, request in pairs:
        measure(client, request, 0, turn, max_seconds)
    while len(durations[-1]) < samples and (len(durations[-1]) < LEAST_SAMPLES or time.monotonic() < end):
        for times, (client, request) in zip(durations, pairs):
            for _request in range(turn):
                start = time.perf_counter_ns()
                client.send(request)
                times.append(time.perf_counter_ns() - start)
    return durations


def prepare_request(client: Client, model: ModelObjective, binary: bool = True) -> PreparedRequest:
    """Return the request that a model is measured by: its first golden case, or zeros."""
    # A server that does not name the extension need not know it; gRPC is binary anyway.
    binary = binary and BINARY_EXTENSION in client.server_metadata().extensions
    if model.golden:
        case = load_cases(model.golden)[0]
        outputs = [tensor.name for tensor in case.outputs]
        return client.prepare(model.name, model.version, case.inputs, outputs, binary=binary)
    metadata = client.model_metadata(model.name, model.version)
    try:
        inputs = [
            Tensor.zeros(item.name, item.datatype, (1 if size < 0 else size for size in item.shape))
            for item in metadata.inputs
        ]
    except ValueError as error:
        raise client.misunderstood(model_subject(model.name, model.version), str(error)) from error
    return client.prepare(model.name, model.version, inputs, binary=binary)
