# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection leaves running on a device: transactions that outlive who asked for them, and the guard."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.detached import (
    Failure,
    Work,
    install_units,
    remove_units,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.own_code import keep_code, keep_only, launcher
from ansible_collections.edgeml.fleet.plugins.module_utils._host.scrub_unit import scrub_units
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import ACCEPTED_LOCK, approve
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime, in_another_hand
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import desired_release
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import OBJECTIVE_MINUTES, Release

DIRECTORY = "transactions"
GUARD_SERVICE, GUARD_TIMER = "edgeml-guard.service", "edgeml-guard.timer"
SCRUB = "edgeml-scrub"
GUARD_SECONDS = 15
GUARD_SERVICE_UNIT = """\
[Unit]
Description=edgeml: go back to the previous release if the new one does not stay up
After=docker.service

[Service]
Type=oneshot
ExecStart={command}
Nice=10
"""
GUARD_TIMER_UNIT = """\
[Unit]
Description=edgeml: look after the releases

[Timer]
OnBootSec=60
OnUnitInactiveSec={seconds}
AccuracySec=1

[Install]
WantedBy=timers.target
"""
LAUNCHER = launcher("_release.agent")


class Transaction(Work):
    """The transaction of one runtime of a host."""

    noun = "transaction"

    def __init__(self, host_root: Path, runtime: str) -> None:
        launch = [LAUNCHER, "transaction", str(host_root), runtime]
        super().__init__(host_root / DIRECTORY, runtime, host_root, f"edgeml-release-{runtime}", launch)

    def is_in_the_way(self, key: str, options: Mapping[str, Any]) -> bool:
        """Let the same be waited for; another one is never interrupted."""
        running = self.running_request()
        if running is not None and running["key"] != key:
            raise in_another_hand(self.lock_file, self.step())
        return False

    def what_became_of_it(self) -> str:
        """Return in words the end of a transaction that nobody has heard, once; empty if there is none."""
        untold = self.untold()
        if untold is None:
            return ""
        if "error" in untold:
            return f"An earlier run was cut off before it heard its end, which was: {Failure(untold['error'])}"
        release = untold["result"].get("release")
        name = str(release.get("id", ""))[:12] if isinstance(release, dict) else ""
        return f"An earlier run was cut off before it heard its end, which was: release {name} is the active one"

    def work(self) -> None:
        """Carry it out, and install the guard."""

        def whole(options: dict[str, Any]) -> dict[str, Any]:
            result = perform(options, DockerEngine(run_program), say=print)
            install_guard(self.home)
            return result

        self.carry_out(whole)


def perform(
    options: Mapping[str, Any],
    engine: DockerEngine,
    *,
    check_mode: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Carry out in this process what the options of the module runtime_release ask for; return its result."""
    release = release_of(options, engine)
    release.say = say
    if options["state"] == "previous":
        return release.roll_back(options["release"], check_mode)
    approve(options, check_mode=check_mode)
    return release.converge(desired_release(options), check_mode, options["force"])


def release_of(options: Mapping[str, Any], engine: DockerEngine) -> Release:
    """Return the transaction that the module's options describe."""
    return Release(
        engine,
        Path(options["root"]),
        options["ca_file"],
        options["start_timeout"],
        options["name"],
        options["runtimes"],
        options["probation_seconds"],
        options["objective_minutes"],
        options["guard_repairs"],
    )


def release_as_recorded(engine: DockerEngine, installed: InstalledRuntime, release_id: str) -> Release:
    """Return the transaction of a runtime with what was recorded with one of its releases."""
    watch = installed.watch(release_id)
    return Release(
        engine,
        installed.host_root,
        watch.get("ca_file", ""),
        float(watch.get("start_timeout", 60)),
        installed.name,
        probation_seconds=int(watch.get("probation_seconds", 600)),
        objective_minutes=float(watch.get("objective_minutes", OBJECTIVE_MINUTES)),
        guard_repairs=bool(watch.get("guard_repairs", False)),
    )


def install_guard(host_root: Path) -> None:
    """Have systemd run the guard with this code; where there is no systemd, nothing watches."""
    code = keep_code(host_root)
    keep_only(code)
    start = f'{sys.executable} -c "{LAUNCHER}" {code}'
    install_units(
        {
            GUARD_SERVICE: GUARD_SERVICE_UNIT.format(command=f"{start} guard {host_root}"),
            GUARD_TIMER: GUARD_TIMER_UNIT.format(seconds=GUARD_SECONDS),
            **scrub_units(SCRUB, "the releases", f"{start} scrub {host_root}", every="1d"),
        }
    )


def forget(host_root: Path) -> None:
    """Remove the guard and what transactions have left, if the host has no runtime any more."""
    if (host_root / "state.json").exists() or (host_root / "runtimes").exists():
        return
    remove_units(GUARD_SERVICE, GUARD_TIMER, f"{SCRUB}.service", f"{SCRUB}.timer")
    (host_root / ACCEPTED_LOCK).unlink(missing_ok=True)
    for name in (DIRECTORY, "agent"):
        shutil.rmtree(host_root / name, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Carry out a transaction (``transaction HOST_ROOT RUNTIME``), look after releases (``guard HOST_ROOT``) or after
    their content (``scrub HOST_ROOT``).
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log that shows each step at once
    work, host_root = arguments[0], Path(arguments[1])
    if work == "transaction":
        Transaction(host_root, arguments[2]).work()
        return
    if work == "scrub":
        from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import scrub

        scrub(host_root)
        return
    from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import look_after

    look_after(host_root)
