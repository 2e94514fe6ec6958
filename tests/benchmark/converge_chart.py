# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw build/bench/converge.json as converge.svg beside it; it runs in an environment that has matplotlib."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def main() -> None:
    """Draw controller CPU and hosts per minute over the number of hosts."""
    file = Path(__file__).resolve().parents[2] / "build" / "bench" / "converge.json"
    results = json.loads(file.read_text())
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, label in zip(
        axes, ("cpu_ms", "hosts_per_minute"), ("controller CPU, ms per host", "hosts per minute"), strict=True
    ):
        for name, title in (("site", "edgeml.fleet.site"), ("plain", "plain playbook")):
            points = [(one["hosts"], one[f"{name}_{key}"]) for one in results if f"{name}_{key}" in one]
            axis.plot(*zip(*points, strict=True), marker="o", label=title)
        axis.set_xlabel("hosts of which nothing changed")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
