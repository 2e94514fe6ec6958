# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet is now: collected from the answers of its hosts, the inventory and the ledger, as plain data.

Times are ISO 8601 in UTC, latencies milliseconds. All text that hosts sent is kept as it came: whoever shows it escapes
it.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.ledger import Line, dated, lines_of_history, merge
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.problems import (
    host_problems,
    mirror_problems,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.runtimes import (
    as_mapping,
    last_known,
    runtime_of,
    taken_back,
    targets,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import site_of, unframed

try:
    from cryptography import x509
except ImportError as error:
    _without_cryptography: ImportError | None = error
else:
    _without_cryptography = None

#: Where the playbook `report` keeps what it learned of a device.
COMPARISON = "edgeml_devices_comparison"
RELEASES = "edgeml_report_releases"
EXPECTED = "edgeml_report_expected"
EXPECTATION = "edgeml_report_expectation"
CERTIFICATE = "edgeml_report_certificate"
#: ... and of a mirror.
MIRROR_COMPARISON = "edgeml_mirrors_comparison"
MIRROR_EXPECTED = "edgeml_report_mirror_expected"
MIRROR_EXPECTATION = "edgeml_report_mirror_expectation"
MIRROR_GENERATION = "edgeml_report_generation"
MIRROR_CERTIFICATE = "edgeml_report_mirror_certificate"

STATES = ("failed", "drifted", "unreachable", "pending", "current")
#: Outcomes of a try after which the host does not run what the inventory says.
MISSED = ("refused", "rolled_back", "failed")
KEPT_EVENTS = 50
#: What host_state says where the inventory, not the host, has changed.
_OTHER_DOCUMENT = "the inventory, the lock or the collection says something else"
_UNCOMPARED = "it cannot be compared"
_NEVER = "no converge has been recorded on this host"


def collect(
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    fleet: str,
    ledger: Sequence[Mapping[str, Any]] = (),
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the report: {"generated", "fleet", "serial", "totals", "sites", "hosts", "ledger"}.

    `hosts` are devices and mirrors; a machine may be both. `ledger` is the fleet's, oldest first; its lines without a
    host, the steps of rollouts, are left out.
    """
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    sites: dict[str, list[dict[str, Any]]] = {}
    devices = []
    events = [line for line in ledger if line.get("host")]
    by_host: dict[str, list[Mapping[str, Any]]] = {}
    for line in dated(events):
        by_host.setdefault(str(line["host"]), []).append(line)
    # The ledger may lack what guards did since.
    known = merge(events, *(_told(name, hostvars[name], moment) for name in hosts))
    latest = dated(known)
    tries: dict[str, list[tuple[Line, Line]]] = {}
    for line, when in zip(known, latest, strict=True):
        tries.setdefault(str(line["host"]), []).append((line, when))
    expected_serials = []
    for name in hosts:
        variables = hostvars[name]
        site = site_of(variables)
        mirrors = sites.setdefault(site, [])
        if MIRROR_COMPARISON in variables:
            mirrors.append(_mirror(name, variables, moment))
            expected_serials.append(as_mapping(variables.get(MIRROR_EXPECTED)).get("serial"))
        if COMPARISON in variables or MIRROR_COMPARISON not in variables:
            device = _device(name, site, variables, by_host.get(name, ()), moment)
            for runtime in device["runtimes"]:
                runtime["since"] = _since(runtime, tries.get(name, ()))
            devices.append(device)
            expected_serials.append(as_mapping(variables.get(EXPECTED)).get("serial"))
    serial = max((one for one in expected_serials if isinstance(one, int)), default=None)
    return {
        "generated": _iso(moment),
        "fleet": fleet,
        "serial": serial,
        "totals": {
            "hosts": {state: sum(host["state"] == state for host in devices) for state in STATES},
            "attention": sum(bool(host["problems"]) for host in devices),
        },
        "sites": [{"name": site, "mirrors": mirrors} for site, mirrors in sorted(sites.items())],
        "hosts": devices,
        "ledger": latest[-KEPT_EVENTS:],
    }


# -- devices -----------------------------------------------------------------------------------------------------------


def _device(
    name: str, site: str, variables: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]], now: datetime
) -> dict[str, Any]:
    comparison, answer = as_mapping(variables.get(COMPARISON)), as_mapping(variables.get(RELEASES))
    expected = as_mapping(variables.get(EXPECTED))
    facts = as_mapping(as_mapping(variables.get("ansible_facts")).get("edgeml_host"))
    wanted = expected.get("runtimes", [])
    state, reason, drift = _state(comparison, answer, as_mapping(variables.get(EXPECTATION)), wanted)
    known = answer.get("runtimes") if isinstance(answer.get("runtimes"), list) else None
    runtimes = [runtime_of(one, wanted, as_mapping(expected.get("measured"))) for one in known or ()]
    if known is None:
        runtimes = last_known(ledger, wanted)
    host = {
        "name": name,
        "site": site,
        "architecture": str(variables.get("edgeml_architecture") or facts.get("architecture") or ""),
        "state": state,
        "reason": reason,
        "drift": drift,
        "pending_since": _pending_since(ledger) if state in ("pending", "unreachable") else None,
        "runtimes": runtimes,
        "targets": targets(wanted, variables),
        "certificates": _certificates(expected, as_mapping(variables.get(CERTIFICATE))),
    }
    return {**host, "problems": host_problems(host, now)}


def _state(
    comparison: Mapping[str, Any],
    answer: Mapping[str, Any],
    expectation: Mapping[str, Any],
    wanted: Sequence[Mapping[str, Any]],
) -> tuple[str, str, list[str]]:
    """Return the state of a device, the reason, and how it differs from what its last converge made of it."""
    reasons = {section: list(map(str, lines)) for section, lines in as_mapping(comparison.get("reasons")).items()}
    unasked = reasons.pop("host", []) + reasons.pop("run", [])
    drift = [line for lines in reasons.values() for line in lines if line not in (_OTHER_DOCUMENT, _NEVER)]
    for line in unasked:
        if line.startswith("it cannot be reached"):
            return "unreachable", line.partition(": ")[2] or line, []
    if answer.get("unreachable") or not comparison:
        return "unreachable", unframed(answer.get("msg") or "it was not asked"), []
    if uncompared := next((line for line in unasked if line.startswith(_UNCOMPARED)), ""):
        return "failed", uncompared, drift
    if expectation.get("failed"):
        return "failed", f"The inventory does not say what runs here: {unframed(expectation.get('msg'))}", drift
    if answer.get("failed"):
        return "failed", f"It cannot tell what runs: {unframed(answer.get('msg'))}", drift
    runtimes = answer.get("runtimes") or []
    if comparison.get("unchanged") and all(one.get("serving") for one in runtimes if one.get("active")):
        return "current", "", []
    if missed := _missed(runtimes, wanted):
        return "failed", missed, drift
    found = [line for one in runtimes for line in one.get("drift") or ()]
    found += [f"the runtime {one['name']} does not serve" for one in runtimes if one.get("active")
              and not one.get("serving") and not one.get("drift")]  # fmt: skip
    drift += [line for line in found if line not in drift]
    if drift:
        return "drifted", "; ".join(drift), drift
    never = [_NEVER] if any(_NEVER in lines for lines in reasons.values()) else []
    return "pending", "; ".join(never + _changes(runtimes, wanted)) or _OTHER_DOCUMENT, []


def _missed(runtimes: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> str:
    """Return why the release that is wanted does not run, if its last try says so; else ""."""
    meant = {runtime["name"]: _identities(runtime["models"]) for runtime in wanted}
    for runtime in runtimes:
        history = runtime.get("history") or []
        back = taken_back(history)
        is_active_again = back.get("release") == as_mapping(runtime.get("active")).get("id")
        last = back if back and not is_active_again else history[-1] if history else {}
        if last.get("outcome") in MISSED and _identities(last.get("models") or []) == meant.get(runtime["name"]):
            verb = {"refused": "refused", "rolled_back": "rolled back", "failed": "not made active"}[last["outcome"]]
            return f"The release {str(last.get('release'))[:12]} was {verb}: {last.get('reason')}"
    return ""


def _identities(models: Iterable[Mapping[str, Any]]) -> set[tuple[str, ...]]:
    return {tuple(str(model.get(key)) for key in ("name", "version", "variant", "digest")) for model in models}


def _changes(runtimes: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how the models that are wanted differ from those that run."""
    before = {model["name"]: model for one in runtimes for model in as_mapping(one.get("active")).get("models", ())}
    after = {model["name"]: model for one in wanted for model in one["models"]}
    changes = [f"{name} {_version(model)} is new" for name, model in after.items() if name not in before]
    changes += [
        f"{name} {_version(before[name])} becomes {_version(model)}"
        for name, model in after.items()
        if name in before and _identities([before[name]]) != _identities([model])
    ]
    return changes + [f"{name} {_version(model)} goes" for name, model in before.items() if name not in after]


def _version(model: Mapping[str, Any]) -> str:
    variant = model.get("variant") or "default"
    return f"{model.get('version')}" + (f" {variant}" if variant != "default" else "")


def _pending_since(ledger: Sequence[Mapping[str, Any]]) -> str | None:
    """Return since when a host lacks its release: the first of the tries that ended without it, after the last good."""
    since = None
    for line in reversed(ledger):
        if line.get("outcome") in ("active", "removed"):
            break
        since = str(line["time"])
    return since


# -- mirrors -----------------------------------------------------------------------------------------------------------


def _mirror(name: str, variables: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    comparison, generation = as_mapping(variables[MIRROR_COMPARISON]), as_mapping(variables.get(MIRROR_GENERATION))
    expected = as_mapping(variables.get(MIRROR_EXPECTED))
    expectation = as_mapping(variables.get(MIRROR_EXPECTATION))
    reasons = {section: list(map(str, lines)) for section, lines in as_mapping(comparison.get("reasons")).items()}
    unreached = [line for line in reasons.get("host", ()) if line.startswith("it cannot be reached")]
    target = Path(str(as_mapping(generation.get("stat")).get("lnk_target") or "")).name.partition(".")[0]
    serial = int(target) if target.isdigit() else None
    drift = [line for lines in reasons.values() for line in lines if line not in (_OTHER_DOCUMENT, _NEVER)]
    wanted = expected.get("serial")
    if unreached or generation.get("unreachable"):
        message = unreached[0].partition(": ")[2] if unreached else unframed(generation.get("msg"))
        state, reason = "unreachable", message
    elif expectation.get("failed"):
        state, reason = "failed", f"The inventory does not say what it serves: {unframed(expectation.get('msg'))}"
    elif uncompared := [line for line in reasons.get("host", ()) if line.startswith(_UNCOMPARED)]:
        state, reason = "failed", uncompared[0]
    elif generation.get("failed"):
        state, reason = "failed", f"It cannot tell what it serves: {unframed(generation.get('msg'))}"
    elif serial is None:
        state, reason = "behind", "it serves nothing yet"
    elif wanted is not None and serial < wanted:
        state, reason = "behind", f"it serves serial {serial}, the lock has {wanted}"
    elif drift:
        state, reason = "drifted", "; ".join(drift)
    else:
        state, reason = "current", ""
    mirror = {
        "host": name,
        "serial": serial,
        "state": state,
        "reason": reason,
        "certificates": _certificates(expected, as_mapping(variables.get(MIRROR_CERTIFICATE))),
    }
    return {**mirror, "problems": mirror_problems(mirror, now)}


# -- certificates, events ----------------------------------------------------------------------------------------------


def _certificates(expected: Mapping[str, Any], read: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return name and end of each certificate.

    A host that is unchanged has the controller's file, byte for byte; of another one the certificate was `read`.
    """
    found = []
    for entry in expected.get("certificates", ()):
        text = str(entry["text"])
        if entry["name"] == "server" and "content" in read:
            try:
                text = base64.b64decode(str(read["content"])).decode("ascii", "replace")
            except binascii.Error:
                text = ""
        if end := _end(text):
            found.append({"name": str(entry["name"]), "not_after": end})
    return found


@functools.lru_cache(maxsize=64)  # all hosts share their authority
def _end(text: str) -> str:
    if _without_cryptography:
        raise missing_library(_without_cryptography)
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
    except ValueError:
        return ""
    end = getattr(certificate, "not_valid_after_utc", None)  # since cryptography 42
    return _iso(end or certificate.not_valid_after.replace(tzinfo=UTC))


def _told(name: str, variables: Mapping[str, Any], now: datetime) -> list[Line]:
    """Return the history of a host as lines of the ledger."""
    runtimes = as_mapping(variables.get(RELEASES)).get("runtimes") or ()
    return lines_of_history(name, site_of(variables), runtimes, heard=_iso(now))


def _since(runtime: Mapping[str, Any], known: Iterable[tuple[Line, Line]]) -> str:
    """Return since when a release serves: as `dated` where the clock of its host was wrong."""
    since = str(runtime["since"])
    tries = [
        (str(line["time"]), str(when["time"]))
        for line, when in known
        if line.get("outcome") == "active" and line.get("release") == runtime["release"]
        and line.get("runtime") == runtime["name"]
    ]  # fmt: skip
    told, moment = min((one for one in tries if one[0] >= since), default=(since, since))
    return since if told == moment else moment


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
