# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured of variants: a table for a terminal, the same as Markdown, and a picture for each model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import Row, has_accuracy
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned, printable
from jinja2 import Environment, StrictUndefined

COLUMNS = ("model", "variant", "kind of host", "bytes", "p50 ms", "p95 ms", "p99 ms", "1/s", "MiB", "start s", "J",
           "golden", "deviation", "accuracy")  # fmt: skip
#: One colour for each variant, that people who see no red or green tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _LEFT, _TOP = 520, 320, 80, 70
#: Radius of the mark of the largest memory, in pixels.
_RADIUS = 22
_STEPS = 4


def _cells(row: Row) -> tuple[str, ...]:
    head = (f"{row['model']} {row['version']}", row["variant"], row["kind"], f"{row.get('bytes', 0):,}")
    if row.get("failure"):
        return (*head, *[""] * 7, "fails", printable(row["failure"])[:80], "")
    figures = [_number(row.get(key), form) for key, form in (
        ("p50_ms", "{:.3f}"), ("p95_ms", "{:.3f}"), ("p99_ms", "{:.3f}"), ("throughput", "{:,.0f}"),
        ("memory_mb", "{:.1f}"), ("cold_start_s", "{:.2f}"), ("energy_j", "{:.4f}"),
    )]  # fmt: skip
    golden = f"{row['golden_passed']}/{row['golden_cases']}"
    return (*head, *figures, golden, _number(row.get("deviation"), "{:.3g}"), _number(row.get("accuracy"), "{:.4f}"))


def _number(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["model"], row["version"], row["kind"], row["variant"]))


def table(rows: Iterable[Row]) -> list[str]:
    """Return the rows as aligned lines for a terminal."""
    return aligned([COLUMNS, *map(_cells, _sorted(rows))])


def markdown(rows: Iterable[Row]) -> str:
    """Return the rows for a merge request, with the pictures."""
    found = _sorted(rows)
    lines = ["## Variants, measured on devices", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "---:|" * (len(COLUMNS) - 3)]
    for row in found:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |")
    for name, of_model in _models(found).items():
        if served := [row for row in of_model if not row.get("failure")]:
            judged = "accuracy" if has_accuracy(served) else "deviation"
            lines += ["", f"![{name}: {judged} against p95, area is memory]({_file(name)})"]
    return "\n".join(lines) + "\n"


def pictures(directory: Path, rows: Iterable[Row]) -> dict[Path, str]:
    """Return the picture of each model and version as SVG, by its path below `directory`."""
    found = {}
    for name, of_model in _models(_sorted(rows)).items():
        served = [row for row in of_model if not row.get("failure")]
        if served:
            found[directory / _file(name)] = picture(name, served)
    return found


def _models(rows: Iterable[Row]) -> dict[str, list[Row]]:
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(f"{row['model']} {row['version']}", []).append(row)
    return models


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.svg"


def picture(title: str, rows: Sequence[Row]) -> str:
    """Return the picture of one model: accuracy, or deviation where some variants have none, against p95.

    There is one mark for each kind of host and variant.
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    right = _top_of(row["p95_ms"] for row in rows)
    labelled = has_accuracy(rows)
    lost = [round(1 - row["accuracy"], 6) if labelled else row.get("deviation") or 0.0 for row in rows]
    high = _top_of(lost)

    def up(value: float) -> float:
        """Return where a loss stands: accuracy ends at 1, at the top; deviation begins at 0, at the bottom."""
        return _TOP + _HEIGHT * (value / high if labelled else 1 - value / high)

    most = max(row["memory_mb"] for row in rows) or 1.0
    marks = [
        {
            "x": _LEFT + _WIDTH * row["p95_ms"] / right,
            "y": up(loss),
            "r": _RADIUS * math.sqrt(row["memory_mb"] / most),
            "colour": COLOURS[variants.index(row["variant"]) % len(COLOURS)],
            "label": kinds.index(row["kind"]) + 1,
            "told": f"{row['variant']} on {row['kind']}: p95 {row['p95_ms']:.3f} ms, deviation "
            f"{_number(row.get('deviation'), '{:.3g}') or 'not known'}, accuracy "
            f"{_number(row.get('accuracy'), '{:.4f}') or 'not known'}, {row['memory_mb']:.1f} MiB",
        }
        for row, loss in zip(rows, lost, strict=True)
    ]
    steps = [step / _STEPS for step in range(_STEPS + 1)]
    text: str = _template().render(
        title=title,
        marks=sorted(marks, key=lambda mark: -float(str(mark["r"]))),
        variants=[(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(variants)],
        kinds=kinds,
        across=[(_LEFT + _WIDTH * step, f"{right * step:.3g}") for step in steps],
        up=[(up(high * step), f"{1 - high * step:.4g}" if labelled else f"{high * step:.3g}") for step in steps],
        upright="accuracy on labelled examples (1 is all)"
        if labelled
        else "largest deviation from the golden cases (0 is exact)",
        left=_LEFT,
        top=_TOP,
        width=_WIDTH,
        height=_HEIGHT,
        most=f"{most:.1f}",
    )
    return text + "\n"


def _top_of(values: Iterable[float]) -> float:
    """Return the end of an axis that begins at 0: the next of 1, 2 and 5 times a power of ten."""
    largest = max(values)
    if largest <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 5, 10) if largest <= step * power)


@functools.cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("variants.svg.j2").read_text(encoding="utf-8"))
