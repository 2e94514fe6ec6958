# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Percentiles and objectives."""

from __future__ import annotations

import time
from typing import cast

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Client, PreparedRequest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import (
    LEAST_SAMPLES,
    Latency,
    ModelObjective,
    measure,
    missed_objective,
    percentile,
)
from hypothesis import given
from hypothesis import strategies as st


@given(
    values=st.lists(st.integers(0, 1000), min_size=1, max_size=300),
    percent=st.sampled_from([1, 5, 50, 90, 95, 99, 99.9, 100]),
)
def test_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(values: list[int], percent: float) -> None:
    ordered = sorted(values)
    result = percentile(ordered, percent)

    def share_not_above(bound: float) -> float:
        return sum(value <= bound for value in values) * 100 / len(values)

    assert result in values
    assert share_not_above(result) >= percent
    assert all(share_not_above(value) < percent for value in values if value < result)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (95, 95), (99, 99), (100, 100), (0.1, 1)])
def test_percentiles_of_a_hundred(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


def latency(**objective: float) -> Latency:
    return Latency(
        ModelObjective("digits", **objective),  # type: ignore[arg-type]
        samples=200,
        mean_ms=14.0,
        min_ms=10.0,
        p50_ms=12.5,
        p95_ms=31.2,
        p99_ms=33.0,
        max_ms=40.0,
    )


@pytest.mark.parametrize(
    ("objective", "met"),
    [({}, True), ({"p95_ms": 31.2}, True), ({"p95_ms": 31.1}, False), ({"p95_ms": 40, "p99_ms": 32.9}, False)],
)
def test_objective(objective: dict[str, float], met: bool) -> None:
    assert latency(**objective).met is met
    assert latency(**objective).as_result()["met"] is met


def test_message_says_what_was_measured_and_what_was_allowed() -> None:
    error = missed_objective("grpc://127.0.0.1:8001", latency(p95_ms=25, p99_ms=50))
    assert "model 'digits'" in error.what
    assert "p95 31.200 ms measured, 25 ms allowed" in error.what
    assert "p99" not in error.what
    assert "200 requests" in error.what
    assert error.where == "grpc://127.0.0.1:8001"
    assert "p50 12.500 ms" in error.seen


class SlowClient:
    """Takes a hundredth of a second for each request."""

    def __init__(self) -> None:
        self.requests = 0

    def send(self, request: object) -> None:
        self.requests += 1
        time.sleep(0.01)


def test_slow_models_get_fewer_requests_but_never_too_few() -> None:
    client = SlowClient()
    durations = measure(cast(Client, client), cast(PreparedRequest, None), samples=1000, warmup=1000, max_seconds=0.001)
    assert len(durations) == LEAST_SAMPLES
    assert client.requests == LEAST_SAMPLES + 1, "one request warms up"
    assert min(durations) >= 10_000_000
