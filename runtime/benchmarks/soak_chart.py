# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw the curves of a soak: ``soak_chart.py build/bench/soak.json`` writes the SVG beside it."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def main() -> None:
    """Draw the result that the command line names."""
    file = Path(sys.argv[1])
    draw(json.loads(file.read_text()), file.with_suffix(".svg"))


def draw(result: dict[str, Any], file: Path) -> None:
    """The curves, as SVG."""
    samples = result["samples"]
    minutes = [(one["seconds"] - samples[0]["seconds"]) / 60 for one in samples]
    rates = [
        (second["answers"] - first["answers"]) / (second["seconds"] - first["seconds"])
        for first, second in pairwise(samples)
    ]
    curves = [
        ("memory, MiB", [("resident", [one["resident"] for one in samples])]),
        ("count", [(key, [one[key] for one in samples]) for key in ("descriptors", "threads")]),
        ("answers per second", [("answers", [rates[0], *rates])]),
    ]
    curves[0][1].append(("proportional", [one["proportional"] for one in samples]))
    figure, axes = pyplot.subplots(len(curves), 1, sharex=True, figsize=(9, 8), layout="constrained")
    for axis, (label, lines) in zip(axes, curves, strict=True):
        for name, values in lines:
            axis.plot(minutes, values, linewidth=1, label=name)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    axes[-1].set_xlabel("minutes")
    figure.savefig(file)


if __name__ == "__main__":
    main()
