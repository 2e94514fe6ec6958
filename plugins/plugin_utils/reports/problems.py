# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a host or a mirror, in words, with the next step for whoever reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

#: Kinds of problems, the most urgent first, and what they are called.
KINDS = {
    "failed": "Failed",
    "drifted": "Drifted",
    "objective": "Objective missed",
    "mirror": "Mirror not current",
    "certificate": "Certificate ends soon",
    "unreachable": "Unreachable",
    "pending": "Pending",
}
EXPIRY_DAYS = 30
#: What differs between hosts that have one and the same problem: ids, measured values, addresses.
_VARIES = re.compile(r"\b[0-9a-f]{12,64}\b|\b\d+(\.\d+)?(?= (ms|MiB)\b)|\b\d+\.\d+\.\d+\.\d+\b")


def host_problems(host: Mapping[str, Any], now: datetime) -> list[dict[str, str]]:
    """Return {"kind", "text", "next"} for each problem of a host of the report, the most urgent first."""
    name, state = host["name"], host["state"]
    problems = []
    if state != "current":
        problems.append({"kind": state, "text": host["reason"], "next": _NEXT[state].format(host=name)})
    problems += [
        {
            "kind": "objective",
            "text": f"{model['name']} {model['version']} over {model['protocol']}: {missed_percentiles(model)}",
            "next": _OBJECTIVE.format(host=name),
        }
        for runtime in host["runtimes"]
        for model in runtime["models"]
        if model["met"] is False
    ]
    return problems + _certificate_problems(host["certificates"], "edgeml.fleet.site", name, now)


def mirror_problems(mirror: Mapping[str, Any], now: datetime) -> list[dict[str, str]]:
    """Return {"kind", "text", "next"} for each problem of a mirror of the report."""
    name = mirror["host"]
    problems = []
    if mirror["state"] != "current":
        problems.append(
            {
                "kind": "mirror",
                "text": mirror["reason"],
                "next": _MIRROR_NEXT.get(mirror["state"], _MIRROR).format(host=name),
            }
        )
    return problems + _certificate_problems(mirror["certificates"], "edgeml.fleet.mirror", name, now)


def grouped(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the problems of all hosts and mirrors, those that are one and the same together, the most urgent first.

    Each has ``kind``, ``text`` and ``next`` (with HOSTS for the names) of the first host, ``varies`` (whether others
    say other ids or values) and ``hosts``, a list of (name, site).
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, site, problem in _all_problems(report):
        key = problem["kind"], _VARIES.sub("", problem["text"].replace(name, ""))
        step = problem["next"].replace(f" --limit {name}", " --limit HOSTS")
        group = groups.setdefault(key, {**problem, "next": step, "varies": False, "hosts": []})
        group["varies"] |= problem["text"] != group["text"]
        group["hosts"].append((name, site))
    order = list(KINDS)
    return sorted(groups.values(), key=lambda group: (order.index(group["kind"]), -len(group["hosts"])))


def _all_problems(report: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    for host in report["hosts"]:
        for problem in host["problems"]:
            yield host["name"], host["site"], problem
    for site in report["sites"]:
        for mirror in site["mirrors"]:
            for problem in mirror["problems"]:
                yield mirror["host"], site["name"], problem


def missed_percentiles(model: Mapping[str, Any]) -> str:
    """Return the percentiles of a model that miss their objective: "p95 31.2 ms, 25 ms allowed"."""
    return "; ".join(
        f"{key.removesuffix('_ms')} {milliseconds(model['measured'][key])}, {milliseconds(allowed)} allowed"
        for key, allowed in model["objective"].items()
        if model["measured"].get(key, 0) > allowed
    )


def milliseconds(value: float) -> str:
    """Return a latency with three digits at most."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def days_left(not_after: str, now: datetime) -> int:
    """Return the whole days until a certificate ends, below 0 if it has."""
    end = datetime.strptime(not_after, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (end - now) // timedelta(days=1)


def _certificate_problems(
    certificates: list[dict[str, str]], playbook: str, host: str, now: datetime
) -> list[dict[str, str]]:
    return [
        {
            "kind": "certificate",
            "text": f"{certificate['name']} certificate "
            + ("has ended" if days < 0 else f"ends in {days} days")
            + f", on {certificate['not_after'][:10]}",
            "next": f"Put a new certificate in place on the controller, then run: ansible-playbook {playbook} "
            f"--limit {host}",
        }
        for certificate in certificates
        if (days := days_left(certificate["not_after"], now)) < EXPIRY_DAYS
    ]


_SITE = "ansible-playbook edgeml.fleet.site --limit {host}"
_NEXT = {
    "failed": "Correct what the reason names, then run: "
    + _SITE
    + ". A release that was refused is not tried again as "
    "it is; if nothing was wrong with it, add -e edgeml_force=true. What served before serves on.",
    "drifted": "Repair it: " + _SITE,
    "unreachable": "Check power, network and SSH. It goes on serving what it has. When it is back: " + _SITE,
    "pending": "Bring it there: " + _SITE,
}
_OBJECTIVE = (
    "Look for other load on the host, then measure again: ansible-playbook edgeml.fleet.verify --limit {host}. If it "
    "stays, give the model more threads, a smaller variant or another host, or allow more time in its slo."
)
_MIRROR = "Correct what the reason names, then run: ansible-playbook edgeml.fleet.mirror --limit {host}"
_MIRROR_NEXT = {
    "behind": "Bring it up to date: ansible-playbook edgeml.fleet.mirror --limit {host}",
    "drifted": "Repair it: ansible-playbook edgeml.fleet.mirror --limit {host}",
    "unreachable": "Check power, network and SSH. Its site serves on, but cannot get a new release. When it is back: "
    "ansible-playbook edgeml.fleet.mirror --limit {host}",
}
