# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout, made of the comparison of all hosts with their last converge."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatch
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager, split_host_pattern
from ansible.parsing.dataloader import DataLoader
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned, encodable, listed, site_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.events import Progress
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import VARIABLE, Settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.waves import plan_waves
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import is_open

DEVICES = "edgeml_devices_comparison"
MIRRORS = "edgeml_mirrors_comparison"
_UNREACHED = "it cannot be reached"
_NAMED = 8
_SLICE = re.compile(r"\[[-0-9:]*\]$")


def matching(pattern: str, groups: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the hosts of a host pattern, among those that this run knows of (in a job slice, those of the slice)."""
    if not pattern:
        return frozenset()
    inventory = InventoryManager(DataLoader(), parse=False)
    for group, hosts in groups.items():
        inventory.add_group(group)
        for host in hosts:
            inventory.add_host(host, group=group)
    return frozenset(host.name for host in inventory.get_hosts(pattern))


def check_canary(pattern: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Raise FleetError for a pattern that Ansible cannot read, or that names no group and no host of the inventory."""
    names = {*groups, *(host for hosts in groups.values() for host in hosts)}
    known = f"the groups there are: {', '.join(sorted({*groups} - {'all', 'ungrouped'})) or 'none'}"
    where = f"{VARIABLE}.canary"
    try:
        matching(pattern, groups)
    except AnsibleError as error:
        remedy = f"correct the pattern; {known}"
        raise FleetError(
            f"Ansible cannot read this pattern: {error}", where=where, seen=pattern, remedy=remedy
        ) from error
    terms = [term.lstrip("&!") for term in split_host_pattern(pattern)]
    finds = [
        term for term in terms if term.startswith("~") or any(fnmatch(name, _SLICE.sub("", term)) for name in names)
    ]
    if terms and not finds:
        raise FleetError(
            "No group and no host has this name", where=where, seen=pattern, remedy=f"name those that go first; {known}"
        )


def make_plan(
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    settings: Settings,
    progress: Progress,
    waiting: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the plan, plain data: ``rollout``, ``waves`` ({"number", "name", "hosts", "keeper"}), ``order`` (their
    hosts), ``batches`` (hosts and keeper of each wave), ``sites`` (by host), ``pending`` (reason by host),
    ``unchanged`` (how many), ``done`` (in earlier runs of this rollout), ``finished`` (their last wave), ``elsewhere``
    (how many hosts of those runs are neither done nor in this one, as with --limit), ``mirrors`` (those to bring up to
    date) and ``mirror_batch`` (them and their keeper). A keeper is the controller's name in a play, which Ansible goes
    on with when all other hosts are lost. `waiting` are devices that preflight found to lack their mirror, or to be
    away, with the reason. `mirror_batch` is empty if the window is closed `now`; without a time, as in check mode, it
    is not looked at.
    """
    to_do, mirrors, unchanged = [], [], []
    pending: dict[str, str] = {}
    sites: dict[str, str] = {}
    for host in hosts:
        variables = hostvars[host]
        if (
            isinstance(answer := variables.get(MIRRORS), Mapping)
            and not answer.get("unchanged")
            and not _unreached(answer)
        ):
            mirrors.append(host)
        if not isinstance(answer := variables.get(DEVICES), Mapping):
            continue
        sites[host] = site_of(variables)
        if answer.get("unchanged"):
            unchanged.append(host)
        elif reason := _unreached(answer):
            pending[host] = f"It cannot be reached: {reason}"
        elif host in (waiting or {}):
            pending[host] = (waiting or {})[host]
        else:
            to_do.append(host)
    canaries = matching(settings.canary, groups)
    earlier = progress.done.intersection(unchanged)
    waves = plan_waves(to_do, settings, canaries, sites, len(earlier - canaries), progress.finished)
    elsewhere = (progress.fleet - progress.done - {*hosts}).intersection(groups.get("all", ()))
    is_closed = now is not None and settings.window is not None and not is_open(settings.window, now)
    keeper = "wave-"
    while any(host.startswith(keeper) for host in hostvars):
        keeper = f"rollout-{keeper}"
    named = [(wave, f"{keeper}{wave.number}") for wave in waves]
    return {
        "rollout": progress.rollout,
        "waves": [
            {"number": wave.number, "name": wave.name, "hosts": list(wave.hosts), "keeper": name}
            for wave, name in named
        ],
        "order": [host for wave in waves for host in wave.hosts],
        "batches": [[*wave.hosts, name] for wave, name in named],
        "sites": sites,
        "pending": pending,
        "unchanged": len(unchanged),
        "done": len(earlier),
        "finished": progress.finished,
        "elsewhere": len(elsewhere),
        "mirrors": mirrors,
        "mirror_batch": [*mirrors, f"{keeper}mirrors"] if mirrors and not is_closed else [],
    }


def _unreached(answer: Mapping[str, Any]) -> str:
    """Return why a host could not be reached, "" if it could."""
    lines = (answer.get("reasons") or {}).get("host") or ()
    found = next((encodable(str(text)) for text in lines if str(text).startswith(_UNREACHED)), "")
    return found.removeprefix(f"{_UNREACHED}: ").strip() or found


def title_of(wave: Mapping[str, Any], last: int) -> str:
    """Return how a wave is called: `Wave 2 of 4` or `Wave 1 of 4, canary`."""
    return f"Wave {wave['number']} of {last}" + (f", {wave['name']}" if wave["name"] else "")


def wave_of(plan: Mapping[str, Any], host: str) -> Mapping[str, Any]:
    """Return the wave of a host, or of a keeper."""
    found: Mapping[str, Any] = next(wave for wave in plan["waves"] if host in (*wave["hosts"], wave["keeper"]))
    return found


def table(plan: Mapping[str, Any], pattern: str = "") -> str:
    """Return the plan as a short table."""
    resumed = f"; {plan['done']} done in earlier runs" if plan["done"] else ""
    lines = [
        f"Rollout {plan['rollout']}: {len(plan['order'])} hosts to do in {len(plan['waves'])} waves, "
        f"{plan['unchanged']} unchanged, {len(plan['pending'])} pending{resumed}"
    ]
    rows = [
        (f"wave {wave['number']}", wave["name"] or "-", len(wave["hosts"]), listed(wave["hosts"], _NAMED))
        for wave in plan["waves"]
    ]
    lines += ["  " + text for text in aligned(rows)]
    if plan["mirrors"] and not plan["mirror_batch"]:
        lines.append(f"  mirrors: {listed(plan['mirrors'], _NAMED)}: they are not changed, since the window is closed")
    by_reason: dict[str, list[str]] = {}
    for host, reason in plan["pending"].items():
        by_reason.setdefault(reason, []).append(host)
    lines += [f"  pending: {listed(hosts, _NAMED)}: {' '.join(reason.split())}" for reason, hosts in by_reason.items()]
    if pattern and plan["waves"] and plan["waves"][0]["name"] != "canary":
        lines.append(f"  no host that is to do matches canary: {pattern}")
    return "\n".join(lines)
