# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of several rounds made comparable: medians, and medians of the rounds' own ratios.

Absolute figures drift with the machine; what servers did in the same round, seconds apart, compares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from serving_bench.options import OURS, PEERS
from serving_bench.results import Results

ByRound = Mapping[int, float]
"""One figure per round."""


@dataclass(frozen=True)
class Comparison:
    """Our figure against another's: the median of the rounds' ratios, and whom against."""

    ratio: float
    other: str


def ratio(ours: ByRound, other: ByRound) -> float | None:
    """The median over common rounds of ours divided by the other; None without a common round."""
    ratios = [ours[number] / other[number] for number in sorted(ours.keys() & other.keys()) if other[number] > 0]
    return median(ratios) if ratios else None


def against_best(figures: Mapping[str, ByRound], *, lowest: bool) -> Comparison | None:
    """Ours against the best peer, which is the one with the best median. None when one of both is missing."""
    peers = {name: each for name, each in figures.items() if name in PEERS and each}
    if not peers or not figures.get(OURS):
        return None
    best = (min if lowest else max)(peers, key=lambda name: median(peers[name].values()))
    found = ratio(figures[OURS], peers[best])
    return Comparison(found, best) if found is not None else None


def load_figures(
    results: Results, measure: str, model: str, encoding: str, clients: int
) -> dict[str, dict[int, float]]:
    """A figure of Sample, by server and round."""
    return _by_server(
        (sample.server, sample.round, getattr(sample, measure))
        for sample in results.samples
        if (sample.model, sample.encoding, sample.clients) == (model, encoding, clients)
    )


def start_figures(results: Results, measure: str) -> dict[str, dict[int, float]]:
    """A figure of Start, by server and round."""
    return _by_server((start.server, start.round, getattr(start, measure)) for start in results.starts)


def engine_figures(results: Results, measure: str, model: str, encoding: str) -> dict[int, float]:
    """A figure of EngineSample, by round, measured beside the servers' in this encoding."""
    return {
        sample.round: getattr(sample, measure)
        for sample in results.engine
        if (sample.model, sample.encoding) == (model, encoding)
    }


def engine_median(results: Results, measure: str, model: str) -> float | None:
    """The median of a figure of EngineSample; None when the model was not measured."""
    figures = [getattr(sample, measure) for sample in results.engine if sample.model == model]
    return median(figures) if figures else None


def _by_server(found: Iterable[tuple[str, int, float]]) -> dict[str, dict[int, float]]:
    figures: dict[str, dict[int, float]] = {}
    for server, number, figure in found:
        figures.setdefault(server, {})[number] = figure
    return figures
