# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard makes of a runtime's counts. The fleet test lets a device go back for them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import GUARD_SECONDS
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import Watch
from ansible_collections.edgeml.fleet.plugins.module_utils._release.objectives import judge, missed, parse_metrics
from ansible_collections.edgeml.fleet.runtime.src.edgeml_runtime.metrics import Metrics


def model(**objectives: Any) -> Model:
    return Model("digits", "1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 10, **objectives)


def measured(*milliseconds: float) -> dict[str, dict[str, float]]:
    """Return what the guard reads of a runtime that has answered so."""
    metrics = Metrics()
    observers = metrics.model_loaded("digits", "1.0.0", "", "onnxruntime_onnx", "CPU", lambda: 0)
    for duration in milliseconds:
        observers.total(duration / 1000)
        observers.compute(9.0)
    return parse_metrics(metrics.exposition().decode())


def test_the_counts_are_those_of_whole_requests() -> None:
    counts = measured(0.3, 3, 30)["digits"]
    assert (counts["0.0005"], counts["0.005"], counts["+Inf"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("objectives", "durations", "why"),
    [
        ({"p95_ms": 5}, [1] * 95 + [30] * 5, ""),
        ({"p95_ms": 5}, [1] * 94 + [30] * 6, "p95 of digits is above 5 ms: 6 of the last 100 requests took longer"),
        ({"p95_ms": 4}, [4.5] * 100, ""),  # too slow, but within a step of the histogram: not certainly
        ({"p99_ms": 5}, [1] * 97 + [30] * 3, "p99 of digits"),
        ({"p50_ms": 5}, [30] * 60 + [1] * 40, "p50 of digits"),
        ({"p95_ms": 60000}, [30] * 100, ""),
        ({}, [3000] * 100, ""),
    ],
)
def test_what_certainly_misses(objectives: dict[str, float], durations: list[float], why: str) -> None:
    found = missed(model(**objectives), measured(*durations)["digits"])
    assert found.startswith(why) if why else not found


def test_it_goes_back_after_minutes_in_a_row_only() -> None:
    watch, served = Watch(), [1.0] * 50
    looks = 5 * 60 // GUARD_SECONDS

    def look(*durations: float) -> str:
        served.extend(durations)
        judge([model(p95_ms=5)], watch.latency, measured(*served))
        return watch.verdict(600, 5)

    assert look() == ""
    for _ in range(looks - 1):
        assert look(*[30] * 20) == ""
    assert look(*[1] * 20) == "", "once it was fast enough"
    for _ in range(looks - 1):
        assert look(*[30] * 20) == ""
        assert look() == "", "a look without requests says nothing"
    assert "it has missed an objective for 5 minutes: p95 of digits is above 5 ms" in look(*[30] * 20)
    assert watch.verdict(600, 0) == "", "0 minutes: never"


def test_a_few_requests_wait_for_more_and_a_new_process_begins_anew() -> None:
    watch = Watch()
    judge([model(p95_ms=5)], watch.latency, measured())
    judge([model(p95_ms=5)], watch.latency, measured(*[30] * 10))
    assert watch.latency["digits"]["missed"] == 0
    judge([model(p95_ms=5)], watch.latency, measured(*[30] * 20))
    assert watch.latency["digits"]["missed"] == 1
    judge([model(p95_ms=5)], watch.latency, measured(*[30] * 5))
    assert watch.latency["digits"]["missed"] == 0
