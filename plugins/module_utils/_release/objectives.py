# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether live requests meet the objectives of a release, by what the runtime counts anyway: no load of our own.

The runtime's histograms count requests up to certain durations. A request counts as too slow only if it certainly was:
if it took longer than the first of those durations that is not below the objective.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Dict

from ansible_collections.edgeml.fleet.plugins.module_utils._host.unix_http import UnixConnection
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Model

#: Requests that are needed to judge; fewer are added to those of the next look.
LEAST_REQUESTS = 20
#: Share of the requests that may take longer than an objective says.
ALLOWED = {"p50_ms": 0.5, "p95_ms": 0.05, "p99_ms": 0.01}
_LINE = re.compile(r"edgeml_inference_duration_seconds_bucket\{([^}]*)\} ([0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

#: Requests so far by the longest duration in seconds, as the runtime writes it ("+Inf" for all).
Counts = Dict[str, float]


def read_metrics(socket: Path) -> dict[str, Counts]:
    """Return the counts of each model at a runtime's metrics socket; {} if it tells none."""
    if not socket.exists():
        return {}
    connection = UnixConnection(str(socket), timeout=5)
    try:
        connection.request("GET", "/metrics", headers={"Host": "localhost"})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        return parse_metrics(text) if response.status == 200 else {}
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


def parse_metrics(text: str) -> dict[str, Counts]:
    """Return the counts of each model in Prometheus' text: whole requests, from their receipt to their answer."""
    found: dict[str, Counts] = {}
    for labels, count in _LINE.findall(text):
        named = dict(_LABEL.findall(labels))
        if named.get("stage") == "total":
            found.setdefault(named["model"], {})[named["le"]] = float(count)
    return found


def judge(models: Iterable[Model], seen: dict[str, dict[str, Any]], now: Mapping[str, Counts]) -> None:
    """Take in one look at the counts: `seen` has for each model the ``counts`` that were judged last, how many looks
    in a row have ``missed`` an objective, and ``why`` the last one did.
    """
    for model in models:
        counts = now.get(model.name)
        if not model.has_objective or not counts:
            continue
        before = seen.get(model.name)
        if before is None or any(count < before["counts"].get(bound, 0) for bound, count in counts.items()):
            # The first look, or the process has begun to count anew.
            seen[model.name] = {"counts": counts, "missed": 0, "why": ""}
            continue
        new = {bound: count - before["counts"].get(bound, 0) for bound, count in counts.items()}
        if new.get("+Inf", 0) < LEAST_REQUESTS:
            continue
        why = missed(model, new)
        seen[model.name] = {"counts": counts, "missed": before["missed"] + 1 if why else 0, "why": why}


def are_whole(seen: Mapping[str, Any]) -> bool:
    """Return whether `judge` has made this; a file may have kept something else."""
    return all(
        isinstance(one, dict)
        and isinstance(one.get("missed"), int)
        and isinstance(one.get("why"), str)
        and isinstance(one.get("counts"), dict)
        and all(isinstance(count, (int, float)) for count in one["counts"].values())
        for one in seen.values()
    )


def missed(model: Model, counts: Counts) -> str:
    """Return which objective these requests miss; empty if none certainly is."""
    total = counts["+Inf"]
    for name, share in ALLOWED.items():
        objective = getattr(model, name)
        if objective is None:
            continue
        bounds = [bound for bound in counts if bound != "+Inf" and float(bound) * 1000 >= objective]
        if not bounds:
            continue
        slow = total - counts[min(bounds, key=float)]
        if slow > share * total:
            return (
                f"{name[:3]} of {model.name} is above {objective:g} ms: {slow:.0f} of the last {total:.0f} requests "
                f"took longer, {share:.0%} may"
            )
    return ""
