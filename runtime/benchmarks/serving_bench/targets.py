# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What edgeml-runtime promises against its peers and against the bare engine, and whether a run reached it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from serving_bench.options import OURS
from serving_bench.ratios import Comparison, against_best, engine_figures, load_figures, ratio, start_figures
from serving_bench.results import Results

REST = ("json", "binary")
GRPC = ("grpc-raw", "grpc-typed")
SMALL = ("tiny", "tree")
IN_PROCESS = "in-process"


@dataclass(frozen=True)
class Target:
    """One promise: ``found`` must not exceed (or, with ``at_least``, reach) ``limit``. None: not measured."""

    what: str
    limit: float
    at_least: bool
    found: float | None
    against: str

    @property
    def reached(self) -> bool | None:
        """None when it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit


def targets(results: Results) -> list[Target]:
    """All promises, each with what this run found."""
    return [
        *_latency_of_tiny(results),
        *_latency_of_vision(results),
        *_throughput_of_small(results),
        *_throughput_of_vision(results),
        *_tail(results),
        _start(results, "Memory, idle", "idle_pss_bytes", 0.65),
        _start(results, "Memory, with 32 clients", "loaded_pss_bytes", 0.65),
        _start(results, "Cold start", "cold_start_seconds", 0.5),
    ]


def _latency_of_tiny(results: Results) -> Iterator[Target]:
    for encoding in (*REST, *GRPC):
        found = against_best(load_figures(results, "p50_us", "tiny", encoding, 1), lowest=True)
        yield _peer_target(f"tiny, {encoding}, p50", 0.15 if encoding in REST else 0.5, False, found)


def _latency_of_vision(results: Results) -> Iterator[Target]:
    for encoding, limit in (("binary", 1.15), ("grpc-raw", 1.25)):
        engine = engine_figures(results, "p50_us", "vision", encoding)
        ours = load_figures(results, "p50_us", "vision", encoding, 1).get(OURS, {})
        yield Target(f"vision, {encoding}, p50", limit, False, ratio(ours, engine), IN_PROCESS)


def _throughput_of_small(results: Results) -> Iterator[Target]:
    for model in SMALL:
        for encoding in (*REST, *GRPC):
            found = _worst(
                (
                    against_best(load_figures(results, "per_second", model, encoding, clients), lowest=False)
                    for clients in (8, 32)
                ),
                min,
            )
            yield _peer_target(f"{model}, {encoding}, throughput with 8 and 32 clients (the worse)", 2.0, True, found)


def _throughput_of_vision(results: Results) -> Iterator[Target]:
    for encoding in ("binary", "grpc-raw"):
        ceiling = engine_figures(results, "two_per_second", "vision", encoding)
        found = [
            ratio(load_figures(results, "per_second", "vision", encoding, clients).get(OURS, {}), ceiling)
            for clients in (8, 32)
        ]
        known = [each for each in found if each is not None]
        yield Target(
            f"vision, {encoding}, throughput with 8 and 32 clients (the worse)",
            0.75,
            True,
            min(known, default=None),
            "in-process on both cores",
        )


def _tail(results: Results) -> Iterator[Target]:
    for model in results.models:
        for encoding in (*REST, *GRPC):
            found = against_best(load_figures(results, "p99_us", model, encoding, 32), lowest=True)
            yield _peer_target(f"{model}, {encoding}, p99 with 32 clients", 1.0, False, found)


def _start(results: Results, what: str, measure: str, limit: float) -> Target:
    return _peer_target(what, limit, False, against_best(start_figures(results, measure), lowest=True))


def _worst(found: Iterable[Comparison | None], choose: Callable[..., Comparison]) -> Comparison | None:
    known = [each for each in found if each is not None]
    return choose(known, key=lambda each: each.ratio) if known else None


def _peer_target(what: str, limit: float, at_least: bool, found: Comparison | None) -> Target:
    return Target(what, limit, at_least, found.ratio if found else None, found.other if found else "best peer")
