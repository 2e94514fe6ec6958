# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as a short table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import STATES
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.problems import KINDS, grouped
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned, listed, printable

_NAMED = 6
_LINES = 20  # of problems, before the others are counted
_LONGEST = 160


def table(report: Mapping[str, Any]) -> str:
    """Return a line for each site, then one for each problem with the hosts that have it, the most urgent first."""
    hosts = report["hosts"]
    lock = f", lock serial {report['serial']}" if report["serial"] is not None else ""
    current = report["totals"]["hosts"]["current"]
    lines = [
        f"Fleet {printable(report['fleet'])}{lock}: {current} of {len(hosts)} hosts are what the inventory says",
        "",
    ]
    rows: list[tuple[object, ...]] = [("site", "hosts", *reversed(STATES), "mirror")]
    for site in report["sites"]:
        states = [host["state"] for host in hosts if host["site"] == site["name"]]
        mirrors = ", ".join(
            f"{mirror['state']}" + (f", serial {mirror['serial']}" if mirror["serial"] is not None else "")
            for mirror in site["mirrors"]
        )
        counts = [states.count(state) or "-" for state in reversed(STATES)]
        rows.append((site["name"] or "(none)", len(states), *counts, mirrors or "-"))
    lines += ["  " + line for line in aligned(rows)]
    found = grouped(report)
    if found:
        lines.append("")
    for group in found[:_LINES]:
        names = [name for name, _site in group["hosts"]]
        text = printable((f"on {names[0]}: " if group["varies"] else "") + group["text"])
        shown = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        lines.append(f"  {KINDS[group['kind']].lower()}: {printable(listed(names, _NAMED))}: {shown}")
    if len(found) > _LINES:
        lines.append(f"  and {len(found) - _LINES} more problems, which report.html shows")
    return "\n".join(lines)
