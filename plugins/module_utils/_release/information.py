# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host can tell of its releases: what is active and since when, what is wrong with it, what was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, SeenOnce
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import last_scrub
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release


def runtimes(engine: DockerEngine, host_root: Path, tries: int) -> list[dict[str, Any]]:
    """Return what the host knows of each of its runtimes, with its last `tries` (RETURN of runtime_release_info)."""
    names = InstalledRuntime(engine, host_root).names()
    return [_runtime(engine, host_root, name, tries) for name in names]


def _runtime(engine: DockerEngine, host_root: Path, name: str, tries: int) -> dict[str, Any]:
    engine = SeenOnce(engine)
    release = Release(engine, host_root, name=name)
    installed = release.installed
    state = installed.state()
    active = state.get("active")
    recorded = installed.recorded(active["id"]) if active else None
    drift = release.faults(recorded[0], active["id"]) if active and recorded else []
    drift += [f"an earlier run was cut short and left the container {one}" for one in installed.left_over()]
    drift += [f"{installed.state_file} is lost or damaged"] if installed.is_damaged() else []
    container = engine.container(installed.active)
    return {
        "name": name,
        "active": active,
        "previous": state.get("previous"),
        "since": state.get("since") or "",
        "serving": bool(container and container["State"]["Running"]) and not drift,
        "drift": drift,
        "scrub": last_scrub(installed),
        "running": Transaction(host_root, name).step(),
        "refused": [
            {"release": entry["release"], "reason": entry["reason"], "time": entry["time"]}
            for entry in installed.history.refused()
        ],
        "history": installed.history.entries()[-tries:] if tries else [],
    }
