# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A synchronization that goes on when who asked for it is gone: over lost connections, nights and restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.detached import (
    PROXY,
    Work,
    environment,
    install_units,
    is_environment,
    key_of,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import (
    read_object,
    read_or_set_aside,
    set_aside,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.own_code import keep_code, keep_only, launcher
from ansible_collections.edgeml.fleet.plugins.module_utils._host.scrub_unit import scrub_units
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import Bundle, held_by
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.scrub import find_damaged, scrub, take_away
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import LOCK_SECONDS, Course, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import Limits, PausedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import TransientError, UntrustedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import Trust

LAUNCHER = launcher("_mirror.agent")
RETRY_SECONDS = 30.0
NAP_SECONDS = 30.0  # clocks are set meanwhile: a long sleep is many short ones
#: What a host may take after a start until its network is there, and a store to answer after hours of waiting.
START_PATIENCE = 900
SERVICE, TIMER = "edgeml-mirror-sync.service", "edgeml-mirror-sync.timer"
SCRUB = "edgeml-mirror-scrub"
SERVICE_UNIT = """\
[Unit]
Description=edgeml: go on with the synchronization of the site mirror
After=network-online.target
ConditionPathExists={request}

[Service]
Type=oneshot
ExecStart={command}
"""
TIMER_UNIT = """\
[Unit]
Description=edgeml: go on with what a restart has interrupted

[Timer]
OnBootSec=60
OnUnitInactiveSec=300

[Install]
WantedBy=timers.target
"""


class Synchronization(Work):
    """The synchronization of one mirror."""

    noun = "synchronization"

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sync", "sync", root, "edgeml-mirror-sync", [LAUNCHER, str(root)])
        self.root = root
        self.status_file = Tree(root).status_file
        #: The options of the last synchronization that succeeded and its proxy, with which a scrub heals.
        self.last_file = root / "sync" / "last"
        #: The digests of damaged blobs, from when they are found until they are here again.
        self.damaged_file = root / "sync" / "damaged"

    def is_in_the_way(self, key: str, options: Mapping[str, Any]) -> bool:
        """Let the same be waited for. What is newer or may go back takes over: what was fetched is not lost."""
        running = self.running_request()
        if running is None or running["key"] == key:
            return False
        there, here = (_serial(request) for request in (running["options"], options))
        if here < there and not options["signatures"].get("accept_older_lock"):
            raise FleetError(
                "A synchronization of this mirror to a newer lock is under way",
                where=str(self.root),
                seen=f"serial {here} in the lock, {there} under way",
                remedy="use the newest fleet.lock.yml; to go back, set edgeml_accept_older_lock: true for one run",
            )
        return True

    def synchronize(self, options: Mapping[str, Any], report_after: float, *, attach: bool) -> dict[str, Any]:
        """Do what the module's options ask for, apart from this process; return its result.

        If it takes longer than `report_after` seconds, return what is known by then; 0 is no limit. With `attach` a
        result that is there already will do.

        Raises FleetError for what it raises there, or as soon as it has to wait for the uplink's hours or bytes: then
        it goes on by itself.
        """
        key = key_of(options)
        if not (attach and self.has_result(key)):
            self.begin(options)
        end = time.monotonic() + report_after

        def look() -> None:
            self.look()
            if report_after and time.monotonic() >= end:
                raise _NotYetError

        try:
            return self.wait(key, look)
        except _NotYetError:
            return {"changed": True, "running": True, "progress": self.status()}

    def _start(self, options: Mapping[str, Any]) -> None:
        self.status_file.unlink(missing_ok=True)  # what an earlier one said
        super()._start(options)

    def status(self) -> dict[str, Any]:
        """Return what is done now (see Progress); empty if nobody knows."""
        status = read_object(self.status_file)
        return status if set(status) >= _STATUS else {}

    def look(self) -> None:
        """Raise FleetError if what runs waits for the uplink's hours or bytes."""
        status = self.status()
        if status.get("state") == "waiting" and {"why", "until"} <= set(status) and self.is_running():
            raise FleetError(
                "The mirror's content is on its way, but not all here yet",
                where=str(self.status_file),
                seen=f"{status['why']}; {status['bytes_done']} of {status['bytes_total']} bytes are here, it goes on "
                f"by itself at {status['until']}",
                remedy="run again after that; or set site_mirror_urgent: true for one run",
            )

    def work(self, *, resumed: bool = False) -> None:
        """Carry out what was requested; `resumed` by the timer, such as after a restart of the host.

        What goes on by itself, resumed or after a wait for the uplink's hours, is tried again by the timer after a
        failure that passes.
        """
        by_itself = resumed
        code = keep_code(self.root)
        keep_only(code)
        start = f'{sys.executable} -c "{LAUNCHER}" {code} {self.root}'
        install_units(
            {
                SERVICE: SERVICE_UNIT.format(request=self.request_file, command=f"{start} resume"),
                TIMER: TIMER_UNIT,
                **scrub_units(SCRUB, "the site mirror", f"{start} scrub", every="30d"),
            }
        )

        def waits() -> None:
            nonlocal by_itself
            by_itself = True

        def whole(options: dict[str, Any]) -> dict[str, Any]:
            result = patient(options, START_PATIENCE if resumed else 0, waits=waits)
            replace_file(self.last_file, json.dumps(_for_later(options)).encode(), 0o600)
            while self.damaged_file.exists():
                noted = self.damaged_file.read_bytes()
                if take_away(self.root, self._noted(noted), LOCK_SECONDS):  # found while this went on
                    patient(options, START_PATIENCE, waits=waits)
                    result["changed"] = True
                if self.damaged_file.exists() and self.damaged_file.read_bytes() == noted:
                    self.damaged_file.unlink()
            return result

        def try_again(error: FleetError) -> bool:
            # A clock that is not set yet makes a certificate look wrong.
            return by_itself and isinstance(error, (TransientError, UntrustedError))

        self.carry_out(whole, attend=not resumed, try_again=try_again)
        last = self._last() if self.damaged_file.exists() else None
        if last is not None:
            self.ask_later(last)  # found when it was about to end

    def scrub(self) -> list[str]:
        """Read all blobs anew; what is damaged is removed, and copied again as in the last synchronization.

        Returns a line for each damaged blob, and what became of them. A synchronization that works meanwhile does it.
        What cannot be copied now is tried again by the timer of the synchronization, and by the next scrub.
        """
        found = find_damaged(self.root)
        if found:
            replace_file(self.damaged_file, "".join(f"{digest}\n" for digest in found).encode(), 0o600)
        failure = None
        try:
            take_away(self.root, found)
        except FleetError as error:  # a synchronization works on the tree
            failure = error
        if not self.damaged_file.exists():
            return found
        options = self._last()
        request = self.running_request()
        if self.is_running() or (request and request["options"] != options):
            return [*found, "the synchronization under way copies again what is damaged"]
        if options is None:
            return found
        if failure is None:
            try:
                self.run(options)
            except FleetError as error:
                failure = error
        if failure is not None:
            self.ask_later(options)
            return [*found, f"what was damaged is not here again yet: {failure}"]
        return [*found, "what was damaged is here again"]

    def _noted(self, text: bytes) -> list[str]:
        """Return the digests in `damaged_file`. Where it is damaged itself, all blobs are read anew."""
        if _DIGESTS.fullmatch(text):
            return text.decode().split()
        set_aside(self.damaged_file, self.warn)
        return find_damaged(self.root)

    def _last(self) -> dict[str, Any] | None:
        """Return the options of the last synchronization and take over its proxy; None if there was none."""
        options = read_or_set_aside(self.last_file, _is_last, self.warn)
        if options is not None:
            os.environ.update(options.pop("environment", {}))
        return options


#: What `Progress` always says.
_STATUS = {"state", "bytes_done", "bytes_total", "bytes_per_second", "seconds_left"}
_DIGESTS = re.compile(rb"(sha256:[0-9a-f]{64}\n)+")


def _is_last(content: Mapping[str, Any]) -> bool:
    needed = [content.get(name) for name in ("lock", "limits", "signatures")]
    return all(isinstance(part, dict) for part in needed) and is_environment(content.get("environment", {}))


class _NotYetError(Exception):
    """It takes longer than somebody waits."""


def patient(
    options: Mapping[str, Any],
    at_least: float = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], datetime] = datetime.now,
    waits: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return what `perform` returns. While no source answers it is tried again, for ``patience`` seconds.

    They are counted from the first failure after bytes came that were never here before, or after the uplink's hours or
    bytes were waited for: `waits` is called then, and the mirror's tree is free meanwhile.
    """
    tree = Tree(Path(options["root"]))
    patience = max(at_least, options.get("patience") or 0)
    failing_since, furthest = None, _bytes_here(tree)
    while True:
        try:
            return perform(options, write=True)
        except PausedError as pause:
            waits()
            while (left := (pause.until - now()).total_seconds()) > 0:
                sleep(min(left, NAP_SECONDS))
            tree.status_file.unlink(missing_ok=True)  # it says that this is waited for
            failing_since, patience = None, max(patience, START_PATIENCE)
        except TransientError as error:
            here = _bytes_here(tree)
            if failing_since is None or here > furthest:
                failing_since = clock()
            furthest = max(furthest, here)
            if clock() - failing_since >= patience:
                raise
            sys.stdout.write(f"tried again in {RETRY_SECONDS:.0f} s: {error}\n")
            sleep(RETRY_SECONDS)


def _bytes_here(tree: Tree) -> int:
    size = 0
    for path in (*tree.cas.glob("*"), *tree.staging.glob("*.part")):
        with contextlib.suppress(FileNotFoundError):  # a scrub removes what is damaged
            size += path.stat().st_size
    return size


def perform(options: Mapping[str, Any], *, write: bool) -> dict[str, Any]:
    """Do in this process what the options of the module mirror_sync ask for; return the module's result."""
    root = Path(options["root"])
    if options["bundle"]:  # it is all here: nothing crosses the uplink
        options = {**options, "limits": {}, "fallbacks": []}
    damaged = scrub(root, write=write) if options["scrub"] else []
    summary = synchronize(
        root,
        Registry.from_options(options["store"]) if options["store"] else Bundle(Path(options["bundle"])).open(),
        options["lock"],
        options["architectures"],
        options["keep_generations"],
        write=write,
        trust=Trust.from_options(options["signatures"]),
        needed=options["needed"],
        in_use=options["in_use"],
        course=Course(
            [Registry.from_options(fallback) for fallback in options["fallbacks"]],
            Limits.from_options(options["limits"]),
            parallel=options["parallel"],
        ),
    )
    result = {**asdict(summary), "damaged_blobs": damaged, "plan": summary.plan(), "held": held_by(Tree(root))}
    result["changed"] |= bool(damaged)
    del result["bill"]  # the plan has it
    diff = {"before": "\n".join(result.pop("before")) + "\n", "after": "\n".join(result.pop("after")) + "\n"}
    return {"diff": diff, **result}


def _for_later(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, and the proxy beside them, without what holds for one run."""
    return {
        **options,
        "scrub": False,
        "limits": {**options["limits"], "urgent": False},
        "signatures": {**options["signatures"], "accept_older_lock": False},
        "environment": environment(PROXY),
    }


def _serial(options: Mapping[str, Any]) -> int:
    lock = options.get("lock")
    serial = lock.get("serial") if isinstance(lock, dict) else None
    return serial if isinstance(serial, int) else 0


def main(arguments: list[str]) -> None:
    """Carry out the synchronization of a mirror (``ROOT``), go on with it after a restart (``ROOT resume``), or read
    anew what the mirror holds (``ROOT scrub``).
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    work = Synchronization(Path(arguments[0]))
    if arguments[1:] == ["scrub"]:
        for line in work.scrub():
            sys.stdout.write(f"{line}\n")
        return
    work.work(resumed=arguments[1:] == ["resume"])
