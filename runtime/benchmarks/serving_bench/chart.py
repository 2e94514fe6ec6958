# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The charts: what a reader wants to see at one look."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from serving_bench.options import ENCODINGS, FLOORS, OURS
from serving_bench.ratios import engine_median, load_figures, start_figures
from serving_bench.results import Results

OUR_COLOUR = "#0a7d4f"
PEER_COLOURS = ("#34495e", "#5d7592", "#8aa0b8", "#b5a06a", "#b98058", "#9a6b86")
MEBIBYTE = 1024 * 1024


def write_charts(results: Results, stem: Path) -> None:
    """Write ``stem`` with the endings .svg and .png."""
    servers = [server for server in results.servers if server not in FLOORS]
    figure, axes = pyplot.subplots(2, 3, figsize=(16, 9), layout="constrained")
    _latency(axes[0][0], results, servers, "tiny", "Tiny model: p50 of one client (µs)")
    _latency(axes[0][1], results, servers, "vision", "Convolution net: p50 of one client (ms)", 1000)
    _throughput(axes[0][2], results, servers, "tiny", "Tiny model: requests per second, 32 clients")
    _throughput(axes[1][0], results, servers, "vision", "Convolution net: requests per second, 32 clients")
    _starts(axes[1][1], results, servers, "loaded_pss_bytes", MEBIBYTE, "Memory with 32 clients (MiB)")
    _starts(axes[1][2], results, servers, "cold_start_seconds", 1, "Cold start to the first right answer (s)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    for ending in ("svg", "png"):
        figure.savefig(stem.with_suffix(f".{ending}"), dpi=110)
    pyplot.close(figure)


def _colour(servers: Sequence[str], server: str) -> str:
    if server == OURS:
        return OUR_COLOUR
    return PEER_COLOURS[[each for each in servers if each != OURS].index(server) % len(PEER_COLOURS)]


def _latency(axes: Axes, results: Results, servers: Sequence[str], model: str, title: str, unit: float = 1) -> None:
    _grouped(axes, results, servers, model, "p50_us", 1, unit)
    engine = engine_median(results, "p50_us", model)
    if engine:
        axes.axhline(engine / unit, color="#c0392b", linestyle="--", linewidth=1)
        axes.annotate("in-process", (0, engine / unit), color="#c0392b", va="bottom", fontsize=8)
    if axes.patches:  # nothing measured has no logarithm
        axes.set_yscale("log")
    axes.set_title(title)


def _throughput(axes: Axes, results: Results, servers: Sequence[str], model: str, title: str) -> None:
    _grouped(axes, results, servers, model, "per_second", 32, 1)
    axes.set_title(title)


def _grouped(
    axes: Axes, results: Results, servers: Sequence[str], model: str, measure: str, clients: int, unit: float
) -> None:
    width = 0.85 / max(1, len(servers))
    for index, server in enumerate(servers):
        places, heights = [], []
        for group, encoding in enumerate(ENCODINGS):
            figures = load_figures(results, measure, model, encoding, clients).get(server)
            if figures:
                places.append(group + (index - (len(servers) - 1) / 2) * width)
                heights.append(median(figures.values()) / unit)
        axes.bar(places, heights, width, label=server, color=_colour(servers, server))
    axes.set_xticks(range(len(ENCODINGS)), ENCODINGS)
    axes.spines[["top", "right"]].set_visible(False)


def _starts(axes: Axes, results: Results, servers: Sequence[str], measure: str, unit: float, title: str) -> None:
    figures = start_figures(results, measure)
    shown = [server for server in servers if figures.get(server)]
    values = [median(figures[server].values()) / unit for server in shown]
    bars = axes.barh(shown, values, color=[_colour(servers, server) for server in shown])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
