# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of what the preflight of all hosts found. On the controller only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import REFUSE, WARN, inventory_finding
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.role_variables import variable_problems

MIRROR = "site_mirror_preflight"
#: Variables in which the roles keep the results of host_preflight.
RESULTS = (MIRROR, "inference_runtime_preflight", "model_store_preflight")
#: Findings about a mirror, which a run that brings the mirror up to date may cure.
CURED_BY_MIRROR = frozenset({"registry", "registry_tls", "content"})
#: Findings for which a device of a rollout waits: it, or the mirror of its site, is not there.
NAME = "name_resolution"
WAITED_FOR = frozenset({"unreachable", NAME, "registry", "content"})
WAIT = "wait"
COLUMNS = ("host", "severity", "name", "value", "need", "remedy")
WIDEST = 60  # characters of a column that others follow


def collect(
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    waits: bool = False,
    outdated_mirrors: Collection[str] = (),
) -> list[dict[str, str]]:
    """Return the findings of all hosts, each {"host", "severity", "name", "value", "need", "remedy"}.

    Those that refuse come first. A device's findings about its mirror only warn if a mirror of its site (equal
    edgeml_site) is among the hosts, since it is brought up to date first. With `waits` a device that lacks its mirror
    waits, and a mirror that cannot be reached is none; nor is one of `outdated_mirrors`, which this run has meanwhile
    failed to bring up to date.
    """
    results: dict[str, dict[str, Any]] = {}
    sites: dict[str, str] = {}
    for host in hosts:
        variables = hostvars[host]
        found = {name: variables[name] for name in RESULTS if name in variables}
        results[host] = {name: result for name, result in found.items() if not result.get("skipped")}
        sites[host] = str(variables.get("edgeml_site", ""))
    mirrored_sites = {
        sites[host]
        for host, found in results.items()
        if MIRROR in found and not (waits and _is_away(found[MIRROR])) and host not in outdated_mirrors
    }
    outdated_sites = {sites[host] for host in outdated_mirrors} - mirrored_sites
    unknown = waits and _nobody_knows_the_name(results) and not any(map(_is_lost_mirror, hostvars.values()))
    waited_for = WAITED_FOR if waits else ()
    findings: list[dict[str, str]] = []
    for host, found in results.items():
        rows: dict[tuple[str, ...], dict[str, str]] = {}  # what two roles found on one host is shown once
        for variable, result in found.items():
            for finding in _findings(result, hostvars[host]):
                entry = {"host": host, **finding}
                if finding["name"] in CURED_BY_MIRROR and variable != MIRROR and sites[host] in mirrored_sites:
                    entry["severity"] = WARN
                    entry["remedy"] = f"nothing if a mirror of this site is brought up first, else {finding['remedy']}"
                elif unknown and finding["name"] == NAME:
                    entry["remedy"] = (
                        "no device of this run knows the name: correct edgeml_registry or edgeml_mirror_ip_address, or "
                        f"the name service; {finding['remedy']}"
                    )
                elif (
                    variable != MIRROR
                    and finding["severity"] == REFUSE  # what is to be ignored only warns
                    and finding["name"] in (*waited_for, *(CURED_BY_MIRROR if sites[host] in outdated_sites else ()))
                ):
                    entry["severity"] = WAIT
                    entry["remedy"] = f"the device waits for the next run; {finding['remedy']}"
                rows[tuple(entry.values())] = entry
        findings += rows.values()
    return sorted(findings, key=lambda entry: entry["severity"] != REFUSE)


def _nobody_knows_the_name(results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether all devices that could be asked fail to find the registry: it is misspelt then, not away."""
    names = [
        {finding["name"] for finding in _findings(result)}
        for found in results.values()
        for variable, result in found.items()
        if variable != MIRROR
    ]
    asked = [found for found in names if "unreachable" not in found]
    return bool(asked) and all(NAME in found for found in asked)


def _is_lost_mirror(variables: Mapping[str, Any]) -> bool:
    """Return whether a host is a mirror that could not be reached; the name may be known only while it is there."""
    compared = variables.get("edgeml_mirrors_comparison")
    reasons = compared.get("reasons") if isinstance(compared, Mapping) else None
    return bool(reasons and reasons.get("host")) or (MIRROR in variables and _is_away(variables[MIRROR]))


def _is_away(result: Mapping[str, Any]) -> bool:
    return any(finding["name"] == "unreachable" for finding in _findings(result))


def _findings(result: Mapping[str, Any], variables: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    if "findings" in result:
        return list(result["findings"])
    if not result.get("failed"):
        return []
    wrong = [problem.error().as_mapping() for problem in variable_problems(variables or {})]
    if wrong:
        return [asdict(inventory_finding(problem)) for problem in wrong]
    seen = str(result.get("msg")).removeprefix("Task failed: ")
    return [  # the task's options could not be made from the inventory
        {
            "name": "inventory",
            "severity": REFUSE,
            "value": seen,
            "need": "a valid inventory",
            "remedy": "correct what the message names",
        }
    ]


def refused(findings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the hosts that are refused."""
    return sorted({entry["host"] for entry in findings if entry["severity"] == REFUSE})


def why_refused(findings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the hosts that are refused, with the reason of each."""
    reasons: dict[str, list[str]] = {}
    for entry in findings:
        if entry["severity"] == REFUSE:
            reasons.setdefault(entry["host"], []).append(f"{entry['name']}: {' '.join(entry['value'].split())}")
    return {host: "; ".join(found) for host, found in sorted(reasons.items())}


def waiting(findings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the devices that wait, with the reason."""
    return {entry["host"]: entry["value"] for entry in findings if entry["severity"] == WAIT}


def table(findings: Sequence[Mapping[str, str]]) -> str:
    """Return one aligned line for each finding, below a head; "" if there is none."""
    if not findings:
        return ""
    head = {"severity": "", "name": "finding"}
    rows = [tuple(head.get(name, name) for name in COLUMNS)]
    rows += [tuple(" ".join(str(entry[name]).split()) for name in COLUMNS) for entry in findings]
    widths = [min(WIDEST, max(len(row[column]) for row in rows)) for column in range(len(COLUMNS) - 1)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows)
