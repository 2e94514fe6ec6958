# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a converge would do to each host: collected from the answers of all hosts, as a table, JSON and Markdown.

Sizes are in bytes, times in seconds, rates in Mbit/s (10^6 bits). On the controller only.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.reasons import told, variant_reasons
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import (
    aligned,
    listed,
    printable,
    site_of,
    unframed,
)

#: Variables in which the roles keep what their hosts answered.
RELEASE = "inference_runtime_result"
CONTENT = "site_mirror_result"
SERVER = "site_mirror_plan"
PACKAGES = "system_packages_plan"
ENGINE = "docker_engine_plan"
KERNEL = "inference_runtime_kernel"
#: Where the playbooks keep whether a host differs from its last converge.
COMPARISONS = ("edgeml_mirrors_comparison", "edgeml_devices_comparison")
#: How fast a site's links are, as its hosts' variables say.
RATES = {"uplink": "edgeml_site_uplink_mbit", "lan": "edgeml_site_lan_mbit"}

COLUMNS = ("host", "what", "before", "after", "moves")
NAMED_HOSTS = 12  # that a line names before it counts the others
WIDEST = 60  # characters of a value
STATES = ("changed", "unchanged", "unknown", "failed")


def collect(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> dict[str, Any]:
    """Return {"serial", "totals", "sites": [{"name", "rates", "totals", "hosts", "variants"}]}, the plan of all hosts.

    A host is ``changed`` or ``unchanged``, ``unknown`` if it could not be reached, or ``failed`` if it refuses the
    release, with the reason. Raises FleetError for a rate that is none.
    """
    sites: dict[str, list[dict[str, Any]]] = {}
    rates: dict[str, dict[str, float | None]] = {}
    for name in hosts:
        variables = hostvars[name]
        host = _host(name, variables)
        sites.setdefault(host["site"], []).append(host)
        known = rates.setdefault(host["site"], dict.fromkeys(RATES))
        for link, variable in RATES.items():
            known[link] = known[link] or _rate(variables.get(variable), variable, name)
    found: list[dict[str, Any]] = [
        {
            "name": site,
            "rates": rates[site],
            "totals": _totals(members, rates[site]),
            "hosts": members,
            "variants": variant_reasons(hostvars, [host["name"] for host in members]),
        }
        for site, members in sorted(sites.items())
    ]
    serials = [host["mirror"]["generation"]["after"] for site in found for host in site["hosts"] if host["mirror"]]
    return {"serial": max(serials, default=None), "totals": _fleet_totals(found), "sites": found}


def _host(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    host: dict[str, Any] = {
        "name": name,
        "site": site_of(variables),
        "state": "unknown",
        "reason": "",
        "runtimes": [],
        "mirror": None,
        "server": None,
        "engine": None,
        "packages": {"install": [], "remove": []},
        "kernel": [],
        "bytes": {"uplink": 0, "lan": 0},
    }
    compared = [
        answer
        for variable in COMPARISONS
        if isinstance(answer := variables.get(variable), Mapping) and "unchanged" in answer
    ]
    if compared and all(answer["unchanged"] for answer in compared):
        return {**host, "state": "unchanged"}
    answers = [
        (kind, answer)
        for kind, variable in (("runtimes", RELEASE), ("mirror", CONTENT), ("kernel", KERNEL))
        for answer in _answers(variables.get(variable))
    ]
    if not answers:
        return {**host, "reason": "unreachable"}
    for kind, answer in answers:
        if answer.get("unreachable") or answer.get("failed"):
            state = "unknown" if answer.get("unreachable") else "failed"
            return {**host, "state": state, "reason": unframed(answer.get("msg", ""))}
        if kind == "mirror":
            host["mirror"] = answer["plan"]
            host["bytes"]["uplink"] += answer["plan"]["bytes"]
        elif kind == "kernel":
            host["kernel"] = answer["plan"]
        else:
            host["runtimes"].append(answer["plan"])
            host["bytes"]["lan"] += sum(answer["plan"].get("bytes", {}).values())
    if host["mirror"] and isinstance(server := variables.get(SERVER), Mapping):
        host["server"] = dict(server)
        host["bytes"]["uplink"] += server["bytes"]
    if isinstance(engine := variables.get(ENGINE), Mapping):
        host["engine"] = dict(engine)
    for packages in (variables.get(PACKAGES) or {}).values():
        for action in ("install", "remove"):
            known = host["packages"][action]
            known += [package for package in packages.get(action, ()) if package not in known]
    changes = (
        any(plan["action"] != "none" or plan["removed_runtimes"] for plan in host["runtimes"])
        or any(plan and plan["action"] != "none" for plan in (host["mirror"], host["server"], host["engine"]))
        or any(host["packages"].values())
        or bool(host["kernel"])
    )
    return {**host, "state": "changed" if changes else "unchanged"}


def _answers(result: Any) -> list[Mapping[str, Any]]:
    """Return the answer of a module, or of each turn of a loop."""
    if not isinstance(result, Mapping) or result.get("skipped"):
        return []
    turns = result.get("results")
    return [turn for turn in turns if not turn.get("skipped")] if isinstance(turns, list) and turns else [result]


def _rate(value: Any, variable: str, host: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise FleetError(
            f"{variable} is not a rate",
            where=f"host {host}",
            seen=repr(value),
            remedy="give Mbit/s as a number above 0, or leave it out to get no estimate",
        )
    return rate


def _totals(hosts: Sequence[Mapping[str, Any]], rates: Mapping[str, float | None]) -> dict[str, Any]:
    plans = [plan for host in hosts for plan in host["runtimes"]]
    models = [model for plan in plans for model in plan.get("models", ())]
    actions = [plan["action"] for plan in plans] + [host["server"]["action"] for host in hosts if host["server"]]
    totals: dict[str, Any] = {
        "hosts": {state: sum(host["state"] == state for host in hosts) for state in STATES},
        "models": {
            "added": sum(model["before"] is None for model in models),
            "changed": sum(model["before"] is not None and model["after"] is not None for model in models),
            "removed": sum(model["after"] is None for model in models),
        },
        "starts": actions.count("start"),
        "restarts": actions.count("restart") + actions.count("repair"),
        "packages": {action: sum(len(host["packages"][action]) for host in hosts) for action in ("install", "remove")},
        "bytes": {link: sum(host["bytes"][link] for host in hosts) for link in RATES},
    }
    totals["seconds"] = {
        link: round(totals["bytes"][link] * 8 / 1e6 / rate, 1) if (rate := rates[link]) else None for link in RATES
    }
    return totals


def _fleet_totals(sites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over all sites; sites work side by side, so that the slowest one gives the time."""
    totals = _totals([host for site in sites for host in site["hosts"]], dict.fromkeys(RATES))
    for link in RATES:
        known = [site["totals"]["seconds"][link] for site in sites if site["totals"]["bytes"][link]]
        totals["seconds"][link] = max(known, default=0.0) if None not in known else None
    return totals


# -- rows, which table and Markdown share ------------------------------------------------------------------------------


def _rows(host: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return what changes on a host as (what, before, after, moves)."""
    rows = []
    mirror, server = host["mirror"], host["server"]
    if mirror and mirror["action"] != "none":
        serial = mirror["generation"]
        what = f"serial {serial['after']}, {mirror['blobs']} blobs" + (
            f" come, {mirror['removed_blobs']} go" if mirror["removed_blobs"] else ""
        )
        before = "none" if serial["before"] is None else f"serial {serial['before']}"
        rows.append(("content", before, what, _moves("uplink", mirror["bytes"]) + bill(mirror.get("bill") or {})))
    if server and server["action"] != "none":
        rows.append(
            ("mirror", _image(server["before"]), f"{_image(server['after'])}, {server['action']}",
             _moves("uplink", server["bytes"]))
        )  # fmt: skip
    if host["engine"]:
        rows.append(("engine", "", host["engine"]["action"], ""))
    for action, word in (("install", "install packages"), ("remove", "remove packages")):
        if names := host["packages"][action]:
            rows.append((word, "", " ".join(names), ""))
    rows += [
        (f"{_KERNEL_WORDS[entry['kind']]} {entry['name']}", _value(entry["before"]), _value(entry["after"]), "")
        for entry in host["kernel"]
    ]
    for plan in host["runtimes"]:
        rows += _runtime_rows(plan)
    return rows


_KERNEL_WORDS = {"module": "kernel module", "sysctl": "sysctl", "file": "file"}


def _runtime_rows(plan: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    name = plan.get("runtime", "runtime")
    of = "" if name == "runtime" else f" ({name})"
    size = plan.get("bytes", {"image": 0, "models": 0})
    if plan.get("image"):
        image = plan["image"]
        rows.append((f"image{of}", _image(image["before"]), _image(image["after"]), _moves("lan", size["image"])))
    elif size["image"]:
        rows.append((f"image{of}", "missing", "pulled again", _moves("lan", size["image"])))
    models = plan.get("models", [])
    for model in models:
        before, after = model["before"], model["after"]
        rows.append((f"model {model['name']}{of}", _model(before, after), _model(after, before), ""))
    if size["models"]:
        rows.append((f"models{of}", "", "fetched", _moves("lan", size["models"])))
    rows += [
        (f"setting {entry['key']}{of}", _value(entry["before"]), _value(entry["after"]), "")
        for entry in plan.get("settings", [])
    ]
    rows += [(f"runtime {other}", "runs", "removed", "") for other in plan["removed_runtimes"]]
    if plan["action"] not in ("none", "remove"):
        rows.append((f"server{of}", "; ".join(plan.get("faults", [])), plan["action"], ""))
    return rows


def _image(reference: str | None) -> str:
    return "none" if not reference else f"{reference.partition('@')[0].rpartition('/')[2]}@{_short(reference)}"


def _short(digest: str) -> str:
    return digest.rpartition(":")[2][:12]


def _model(model: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if model is None:
        return "none"
    variant = model.get("variant") or "default"
    words = [str(model["version"]), *([str(variant)] if variant != "default" else []), _short(str(model["digest"]))]
    if other is not None:
        words += [
            f"{key}={_value(model[key])}"
            for key in ("options", "protocols")
            if key in model and model[key] != other.get(key)
        ]
    return " ".join(words)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def _moves(link: str, size: int) -> str:
    return f"{_LINKS[link]} {readable_size(size)}" if size else ""


def bill(of: Mapping[str, Any]) -> str:
    """Return what a mirror's limits make of its bytes, such as ", 2 nights at 1 Mbit/s from 22:00"."""
    if not of.get("days"):
        return ""
    hours = of["hours"]
    word = "night" if hours and all(span[:5] > span[6:] for span in hours) else "day"
    text = f", {of['days']} {word}{'s' if of['days'] > 1 else ''}"
    if of["mbit"]:
        text += f" at {of['mbit']:g} Mbit/s"
    return text + (f" from {' and '.join(span[:5] for span in hours)}" if hours else "")


_LINKS = {"uplink": "uplink", "lan": "LAN"}


def readable_size(size: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def readable_time(seconds: float) -> str:
    """Return a span of time as people say it."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s" if seconds else "0 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _heading(report: Mapping[str, Any]) -> str:
    hosts = report["totals"]["hosts"]
    lock = f" for the lock with serial {report['serial']}" if report["serial"] is not None else ""
    return f"Plan{lock}: {hosts['changed']} of {sum(hosts.values())} hosts change"


def _summary(totals: Mapping[str, Any]) -> str:
    hosts, models, packages, size = (totals[key] for key in ("hosts", "models", "packages", "bytes"))
    parts = [", ".join(f"{number} {state}" for state, number in hosts.items() if number)]
    if any(models.values()):
        parts.append("models: " + ", ".join(f"{number} {word}" for word, number in models.items() if number))
    if totals["starts"] or totals["restarts"]:
        parts.append(f"starts: {totals['starts']}, restarts: {totals['restarts']}")
    if any(packages.values()):
        parts.append("packages: " + ", ".join(f"{number} to {word}" for word, number in packages.items() if number))
    for link, variable in RATES.items():
        if not size[link]:
            continue
        seconds = totals["seconds"][link]
        estimate = f"no estimate without {variable}" if seconds is None else f"about {readable_time(seconds)}"
        parts.append(f"{_LINKS[link]} {readable_size(size[link])}, {estimate}")
    return "; ".join(part for part in parts if part)


def _others(hosts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (state, hosts) in one line each, for hosts that have no rows."""
    lines = []
    unchanged = [host["name"] for host in hosts if host["state"] == "unchanged"]
    if unchanged:
        lines.append(("unchanged", listed(unchanged, NAMED_HOSTS)))
    for state in ("unknown", "failed"):
        by_reason: dict[str, list[str]] = {}
        for host in hosts:
            if host["state"] == state:
                by_reason.setdefault(host["reason"], []).append(host["name"])
        lines += [(state, f"{', '.join(names)}: {reason}") for reason, names in by_reason.items()]
    return lines


def _site_name(site: Mapping[str, Any]) -> str:
    return f"Site {site['name']}" if site["name"] else "Without a site"


# -- table and Markdown ------------------------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> str:
    """Return the plan for a terminal: by site, one aligned line for each change, totals last."""
    lines = [_heading(report)]
    for site in report["sites"]:
        lines += ["", printable(_site_name(site))]
        rows = [COLUMNS] if any(host["state"] == "changed" for host in site["hosts"]) else []
        for host in site["hosts"]:
            if host["state"] == "changed":
                names = [host["name"]] + [""] * len(_rows(host))
                rows += [(name, *row) for name, row in zip(names, _rows(host), strict=False)]
        lines += ["  " + line for line in aligned(rows)]
        lines += [f"  {state}: {printable(names)}" for state, names in _others(site["hosts"])]
        lines += [f"  {printable(text)}" for text in told(site["variants"])]
        lines.append(f"  total: {printable(_summary(site['totals']))}")
    if len(report["sites"]) > 1:
        lines += ["", f"Fleet: {printable(_summary(report['totals']))}"]
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the plan for a merge request."""
    lines = [f"## {_heading(report)}"]
    for site in report["sites"]:
        lines += ["", f"### {_escaped(_site_name(site))}", ""]
        changed = [host for host in site["hosts"] if host["state"] == "changed"]
        if changed:
            lines += ["| Host | What | Before | After | Moves |", "|---|---|---|---|---|"]
        for host in changed:
            lines += ["| " + " | ".join(_escaped(cell) for cell in (host["name"], *row)) + " |" for row in _rows(host)]
        if changed:
            lines.append("")
        lines += [f"- {state}: {_escaped(names)}" for state, names in _others(site["hosts"])]
        lines += [f"- {_escaped(text)}" for text in told(site["variants"])]
        lines.append(f"- total: {_escaped(_summary(site['totals']))}")
    if len(report["sites"]) > 1:
        lines += ["", f"**Fleet**: {_escaped(_summary(report['totals']))}"]
    return "\n".join(lines) + "\n"


def _escaped(text: object) -> str:
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(printable(text), quote=False))
