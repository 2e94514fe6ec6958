# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the hosts have measured to the table beside the lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import Row
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import printable, unframed

#: Where the role inference_runtime keeps what a host has measured.
RESULT = "inference_runtime_measured"
FIGURES = (
    "digest", "bytes", "image", "protocol", "p50_ms", "p95_ms", "p99_ms", "samples", "throughput", "clients",
    "memory_mb", "cold_start_s", "energy_j", "golden_passed", "golden_cases", "deviation", "failure",
)  # fmt: skip


def measured_rows(
    hostvars: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Sequence[Mapping[str, Any]]], time: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows that the hosts have measured, and what went wrong or is left, in words."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for host, models in asked.items():
        kinds = {(model["name"], model["version"]): model["kind"] for model in models}
        result = native(hostvars[host].get(RESULT) or {})
        answers = result.get("results") or [result]
        for answer in answers:
            if "measured" not in answer and not answer.get("skipped"):
                reason = unframed(answer.get("msg", "the host cannot be reached"))
                notes.append(f"{host}: {printable(reason)}")
            for figures in answer.get("measured", ()):
                key = (str(figures["model"]), str(figures["version"]))
                row = {"model": key[0], "version": key[1], "variant": str(figures["variant"]), "kind": kinds[key]}
                rows.append(
                    {**row, **{name: figures[name] for name in FIGURES if name in figures}, "host": host, "time": time}
                )
            notes += [f"{host}: {printable(text)}" for text in answer.get("failures", ())]
            notes += [f"{host}: no time was left for {printable(name)}" for name in answer.get("left", ())]
    return rows, notes


def still_published(rows: Iterable[Row], lock: Mapping[str, Any]) -> list[Row]:
    """Return the rows of versions that the lock still has."""
    return [row for row in rows if row["version"] in lock["models"].get(row["model"], {})]
