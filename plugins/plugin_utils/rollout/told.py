# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts told of their releases, as lines of the ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.runtimes import taken_back
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import site_of


def told_lines(
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    variable: str,
    serial: int | None = None,
    rollout: str = "",
    removed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return the histories that the hosts' `variable` holds (an answer of runtime_release_info).

    Parameters
    ----------
    serial : int or None
        Serial of the lock, for the last try of each runtime: nobody knows it of those before.
    rollout : str
        Name of the rollout that has made the last try of each runtime.
    removed : collection of str
        Hosts whose runtimes have been removed since they were asked.
    """
    lines = []
    for host in hosts:
        answer = hostvars[host].get(variable)
        runtimes = answer.get("runtimes") if isinstance(answer, Mapping) else None
        site = site_of(hostvars[host])
        for runtime in runtimes or ():
            of_runtime = ledger.lines_of_history(host, site, [runtime])
            if of_runtime and serial is not None:
                made = taken_back(of_runtime) or of_runtime[-1]
                made.update(serial=int(serial), rollout=rollout)
            lines += of_runtime
            active = runtime.get("active")
            if host in removed and active:
                models = [
                    {key: model.get(key) for key in ("name", "version", "variant", "digest")}
                    for model in active["models"]
                ]
                known = {"site": site, "runtime": runtime["name"], "release": active["id"], "models": models}
                lines.append(ledger.line(host, "removed", by="operator", **known))
    return lines
