# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw build/bench/inventory.json as inventory.svg beside it; it runs in an environment that has matplotlib."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def main() -> None:
    """Draw seconds and memory over the number of hosts."""
    file = Path(__file__).resolve().parents[2] / "build" / "bench" / "inventory.json"
    results = json.loads(file.read_text())
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = {"hosts": "hosts' source", "plugin": "plugin", "list": "--list", "export": "--list --export"}
    for axis, unit in zip(axes, ("seconds", "mebibytes"), strict=True):
        for key, label in lines.items():
            points = [(one["hosts"], one[f"{key}_{unit}"]) for one in results if f"{key}_{unit}" in one]
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=label)
        axis.set_xlabel("hosts of 50 models")
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
