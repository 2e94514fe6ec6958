# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of all trials, by fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.tests.faults.trial import STEPS, Result

HEAD = """\
# Faults at every step of a release

{trials} trials, seed {seed}. Each cell: trials, of these went wrong.

"""


def write_table(path: Path, results: Sequence[Result], seed: int) -> None:
    """Write what became of the trials as Markdown."""
    columns = ["Fault", *STEPS, "Old release served", "New release served", "Requests", "Lost"]
    lines = [columns, ["---"] * len(columns)]
    for fault in sorted({result.fault for result in results}):
        of_fault = [result for result in results if result.fault == fault]
        cells = []
        for step in STEPS:
            found = [result for result in of_fault if result.step == step]
            cells.append(f"{len(found)}, {sum(bool(result.wrong) for result in found)}" if found else "")
        served = [str(sum(result.served == which for result in of_fault)) for which in ("old", "new")]
        counts = [str(sum(result.sent for result in of_fault)), str(sum(result.lost for result in of_fault))]
        lines.append([fault, *cells, *served, *counts])
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    path.write_text(HEAD.format(trials=len(results), seed=seed) + table + "\n")
