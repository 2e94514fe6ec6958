# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as one static HTML page. Nothing is loaded from anywhere, and it reads without its script.

The template escapes all text by itself. A policy in the page lets nothing run or load but its own style and script, so
that text from a host could not even if an escape were missing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import STATES
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.problems import (
    EXPIRY_DAYS,
    KINDS,
    days_left,
    grouped,
    milliseconds,
)
from jinja2 import Environment, StrictUndefined

_PAGE = Path(__file__).with_name("page")
#: Hosts up to which a problem and its command name each of them.
_NAMED = 24
_LONGEST = 700  # characters of a reason
_EVENTS = 20
#: Steps of a bar; the objective is at two thirds.
_STEPS = 30
_OBJECTIVE_STEP = 20
#: Hosts up to which a plot shows each host as a dot.
_DOTS = 60


def page(report: Mapping[str, Any]) -> str:
    """Return the whole page."""
    template, style, script = _sources()
    now = datetime.strptime(report["generated"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    text: str = template.render(
        report=report,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        states=_states(report["hosts"]),
        attention=_attention(report),
        sites=_sites(report, now),
        models=_models(report["hosts"]),
        certificates=_certificates(report, now),
        events=list(reversed(report["ledger"]))[:_EVENTS],
        steps=range(_STEPS + 1),
        objective_step=_OBJECTIVE_STEP,
    )
    return text


@functools.cache
def _sources() -> tuple[Any, str, str]:
    """Return the template, the style and the script of the page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"day": _day, "minute": _minute, "short": _short, "count": _count, "bar": _bar,
                            "clipped": _clipped}  # fmt: skip
    environment.globals |= {"title": STATE_TITLES, "outcomes": OUTCOMES, "named": _NAMED}
    texts = [_PAGE.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".html.j2", ".css", ".js")]
    # REUSE-IgnoreStart
    template, style, script = (text.partition("SPDX-License-Identifier: GPL-3.0-or-later")[2] for text in texts)
    # REUSE-IgnoreEnd
    # What follows the licence's line begins with the end of its comment.
    ends = [part.partition(end)[2].strip("\n") for part, end in ((template, "#}"), (style, "*/"), (script, "*/"))]
    return environment.from_string(ends[0]), f"\n{ends[1]}\n", f"\n{ends[2]}\n"


STATE_TITLES = {
    "failed": "Failed",
    "drifted": "Drifted",
    "unreachable": "Unreachable",
    "pending": "Pending",
    "current": "Current",
}
OUTCOMES = {
    "active": "current",
    "removed": "current",
    "pending": "pending",
    "refused": "failed",
    "rolled_back": "failed",
    "failed": "failed",
}


def _states(hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(host["state"] for host in hosts)
    total = len(hosts) or 1
    found, left = [], 0.0
    for state in reversed(STATES):
        width = counts[state] / total * 100
        found.append({"state": state, "count": counts[state], "left": round(left, 3), "width": round(width, 3)})
        left += width
    return found


def _attention(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return problems by kind, the most urgent kind first; each with all the hosts that have it."""
    kinds: dict[str, dict[str, Any]] = {}
    for group in grouped(report):
        kind = group["kind"]
        names = [name for name, _site in group["hosts"]]
        limit = f" --limit {','.join(names)}" if len(names) <= _NAMED else ""
        by_site: dict[str, list[str]] = {}
        for name, site in group["hosts"]:
            by_site.setdefault(site, []).append(name)
        card = {
            "text": group["text"],
            "example": names[0] if group["varies"] else "",
            "next": _step(group["next"].replace(" --limit HOSTS", limit)),
            "count": len(names),
            "sites": by_site,
        }
        of = kinds.setdefault(kind, {"kind": kind, "title": KINDS[kind], "hosts": set(), "cards": []})
        of["hosts"] |= set(names)
        of["cards"].append(card)
    return [{**of, "count": len(of["hosts"])} for of in kinds.values()]


def _step(text: str) -> list[tuple[str, bool]]:
    """Return the next step in parts, each with whether it is a command to type."""
    before, found, rest = text.partition("ansible-playbook ")
    if not found:
        return [(text, False)]
    words = rest.split(" ")
    length = next((index + 1 for index, word in enumerate(words) if word.endswith((".", ";"))), len(words))
    command = (found + " ".join(words[:length])).rstrip(".;")
    after = " ".join(["", *words[length:]])
    return [(before, False), (command, True), (after, False)]


def _sites(report: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    by_site: dict[str, list[Mapping[str, Any]]] = {}
    for host in report["hosts"]:
        by_site.setdefault(host["site"], []).append(host)
    found = []
    for site in report["sites"]:
        hosts = by_site.get(site["name"], [])
        ends = [entry["not_after"] for holder in (*hosts, *site["mirrors"]) for entry in holder["certificates"]]
        first = min(ends, default="")
        order = {state: index for index, state in enumerate(STATES)}
        found.append(
            {
                "name": site["name"] or "Without a site",
                "hosts": sorted(hosts, key=lambda host: (order[host["state"]], not host["problems"])),
                "states": _states(hosts),
                "attention": sum(bool(host["problems"]) for host in hosts),
                "mirrors": site["mirrors"],
                "certificate": first,
                "expires": bool(first) and days_left(first, now) < EXPIRY_DAYS,
            }
        )
    return found


def _models(hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each version and variant of each model with where it runs and how fast it is."""
    placed: dict[tuple[str, str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for host in hosts:
        for runtime in host["runtimes"]:
            for model in runtime["models"]:
                key = model["name"], model["version"], model["variant"]
                placed.setdefault(key, []).append((host["name"], model))
    found = []
    for (name, version, variant), uses in sorted(placed.items()):
        measured = sorted((model["measured"]["p95_ms"], host) for host, model in uses if "p95_ms" in model["measured"])
        objectives = sorted({model["objective"]["p95_ms"] for _host, model in uses if "p95_ms" in model["objective"]})
        found.append(
            {
                "name": name,
                "version": version,
                "variant": "" if variant == "default" else variant,
                "hosts": len(uses),
                "protocols": sorted({model["protocol"] for _host, model in uses}),
                "missed": sum(model["met"] is False for _host, model in uses),
                "measured": len(measured),
                "median": milliseconds(statistics.median(value for value, _host in measured)) if measured else "",
                "slowest": (milliseconds(measured[-1][0]), measured[-1][1]) if measured else None,
                "objectives": [milliseconds(value) for value in objectives],
                "plot": _plot([value for value, _host in measured], objectives),
            }
        )
    return found


def _plot(measured: Sequence[float], objectives: Sequence[float]) -> dict[str, Any] | None:
    """Return the marks of a plot, 320 by 64: hosts over their p95 latency, on a logarithmic axis."""
    if not measured:
        return None
    floor = 1e-3
    shown = [max(value, floor) for value in (*measured, *objectives)]
    low, high = math.log10(min(shown)) - 0.2, math.log10(max(shown)) + 0.2
    left, width, bottom, height = 6.0, 308.0, 44.0, 34.0

    def place(value: float) -> float:
        return round(left + (math.log10(max(value, floor)) - low) / (high - low) * width, 1)

    size = 7.0  # of a bin
    bins = Counter(math.floor((place(value) - left) / size) for value in measured)
    most = max(bins.values())
    limit = max(objectives, default=math.inf)
    late = {number for number in bins if left + number * size + size / 2 > place(limit)} if objectives else set()
    marks = []
    for number, count in sorted(bins.items()):
        x = round(left + number * size, 1)
        if len(measured) <= _DOTS and most <= height / 7:
            marks += [
                {"x": x + 3.5, "y": round(bottom - 3.5 - 7 * level, 1), "late": number in late}
                for level in range(count)
            ]
        else:
            tall = max(2.0, round(height * count / most, 1))
            marks.append({"x": x, "y": round(bottom - tall, 1), "height": tall, "late": number in late})
    decades = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return {
        "marks": marks,
        "dots": "height" not in marks[0],
        "bottom": bottom,
        "ticks": [{"x": place(value), "text": milliseconds(value)} for value in decades],
        "objectives": [{"x": place(value), "text": milliseconds(value)} for value in objectives[-3:]],
    }


def _certificates(report: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Return certificates by name and day of their end, the first to end first."""
    holders = [(host["name"], host["certificates"]) for host in report["hosts"]]
    holders += [(mirror["host"], mirror["certificates"]) for site in report["sites"] for mirror in site["mirrors"]]
    groups: dict[tuple[str, str], list[str]] = {}
    for holder, certificates in holders:
        for entry in certificates:
            groups.setdefault((entry["not_after"], entry["name"]), []).append(holder)
    return [
        {"name": name, "end": end, "days": days_left(end, now), "hosts": hosts,
         "soon": days_left(end, now) < EXPIRY_DAYS}
        for (end, name), hosts in sorted(groups.items())
    ][:20]  # fmt: skip


def _bar(model: Mapping[str, Any]) -> int | None:
    """Return the step of a bar that shows a model's p95 against its objective, None where one of them is missing."""
    if "p95_ms" not in model["measured"] or not model["objective"].get("p95_ms"):
        return None
    share: float = model["measured"]["p95_ms"] / model["objective"]["p95_ms"]
    step = math.ceil(share * _OBJECTIVE_STEP)
    # What meets its objective never passes the line, what misses it always does.
    return min(step, _STEPS) if share > 1 else min(step, _OBJECTIVE_STEP)


def _day(time: str) -> str:
    return str(time)[:10]


def _minute(time: str) -> str:
    return str(time)[:16].replace("T", " ")


def _short(digest: str) -> str:
    return str(digest).rpartition(":")[2][:12]


def _count(number: int) -> str:
    return f"{number:,}"


def _clipped(text: object) -> str:
    words = str(text)
    return words if len(words) <= _LONGEST else words[:_LONGEST] + " …"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
