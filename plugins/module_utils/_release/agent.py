# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection leaves running on a host: transactions that outlive who asked for them, and the guard.

A transaction runs in a process of its own, under systemd where there is one: a lost connection, a killed controller or
a killed module does not end it. The next run attaches to it, or finds what became of it. The code is that of the module
that asked, kept below ``agent/``, so that a host needs nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import ACCEPTED_LOCK, approve
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime, in_another_hand
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import desired_release
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release

DIRECTORY = "transactions"
POLL_SECONDS = 0.05
#: Seconds that a process may take from its start to its lock, on a slow board.
START_SECONDS = 60.0
#: What a transaction takes along of the environment of who asked for it.
ENVIRONMENT = ("PATH", "LANG", "DOCKER_HOST", "DOCKER_CONFIG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
               "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
SYSTEMD = Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")
GUARD_SERVICE, GUARD_TIMER = "edgeml-guard.service", "edgeml-guard.timer"
SCRUB_SERVICE, SCRUB_TIMER = "edgeml-scrub.service", "edgeml-scrub.timer"
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
SCRUB_SERVICE_UNIT = """\
[Unit]
Description=edgeml: find content that is not what its digest says, and heal it
After=docker.service network-online.target

[Service]
Type=oneshot
ExecStart={command}
Nice=19
CPUSchedulingPolicy=idle
IOSchedulingClass=idle
"""
SCRUB_TIMER_UNIT = """\
[Unit]
Description=edgeml: read the content of the releases anew

[Timer]
OnBootSec=2min
OnUnitInactiveSec=1d
AccuracySec=1min

[Install]
WantedBy=timers.target
"""
LAUNCHER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import main; main(sys.argv[1:])"
)


class Transaction:
    """The transaction of one runtime of a host: at most one at a time, whoever asks."""

    def __init__(self, host_root: Path, runtime: str) -> None:
        self.host_root = host_root
        self.runtime = runtime
        directory = host_root / DIRECTORY
        self.request_file = directory / f"{runtime}.request"
        self.result_file = directory / f"{runtime}.result"
        self.log_file = directory / f"{runtime}.log"
        self.lock_file = directory / f"{runtime}.lock"

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what a module's `options` ask for, apart from this process, and return the module's result.

        If the same runs already, its result is waited for.

        Raises FleetError for what it raises there, or if another one runs.
        """
        key = _key(options)
        make_directory(self.lock_file.parent)
        with self.lock_file.with_suffix(".start").open("wb") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if self.is_running():
                self._check_same(key)
            else:
                self._start({"options": dict(options), "key": key})
        return self._wait(key)

    def is_running(self) -> bool:
        """Return whether a process works on it now."""
        try:
            with self.lock_file.open("r+b") as file:
                return not _lock(file)
        except FileNotFoundError:
            return False

    def step(self) -> str:
        """Return the last line of what a process says it does; empty if none runs."""
        if not self.is_running():
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return lines[-1] if lines else ""

    def carry_out(self) -> None:
        """Do what was requested, in this process, and leave the result where it is waited for."""
        with self.lock_file.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever asks whether it runs holds it for a moment
            if not self.request_file.exists():
                return
            request = json.loads(self.request_file.read_text())
            try:
                outcome = {"result": perform(request["options"], DockerEngine(run_program), say=print)}
                install_guard(self.host_root)
            except FleetError as error:
                outcome = {"error": error.as_result()}
            except Exception:
                traceback.print_exc()
                outcome = {"error": _unexpected(traceback.format_exc()).as_result()}
            replace_file(self.result_file, json.dumps({**outcome, "key": request["key"]}).encode(), 0o600)
            self.request_file.unlink()

    def _check_same(self, key: str) -> None:
        try:
            running = json.loads(self.request_file.read_text())["key"]
        except (FileNotFoundError, ValueError):
            return  # it has just ended
        if running != key:
            raise in_another_hand(self.lock_file, self.step())

    def _start(self, request: Mapping[str, Any]) -> None:
        self.lock_file.touch(mode=0o600)
        self.result_file.unlink(missing_ok=True)
        replace_file(self.request_file, json.dumps(request).encode(), 0o600)
        self.log_file.write_bytes(b"")
        code = keep_code(self.host_root)
        command = [sys.executable, "-c", LAUNCHER, str(code), "transaction", str(self.host_root), self.runtime]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        if SYSTEMD.is_dir():
            unit = f"edgeml-release-{self.runtime}-{time.time_ns() // 1_000_000}"
            log = f"append:{self.log_file}"
            prefix = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
            prefix += [f"--property=Standard{stream}={log}" for stream in ("Output", "Error")]
            prefix += [f"--setenv={name}={value}" for name, value in environment.items()]
            code_, out, err = run_program([*prefix, *command])
            if code_ == 0:
                self._wait_for_start()
                return
            with self.log_file.open("a") as file:
                file.write(f"systemd-run does not work here, so it runs without: {(err or out).strip()}\n")
        with self.log_file.open("ab") as log_file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self._wait_for_start(process)

    def _wait_for_start(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Return when the process works, or has ended already."""
        deadline = time.monotonic() + START_SECONDS
        while not self.is_running() and not self.result_file.exists() and time.monotonic() < deadline:
            if process and process.poll() is not None:
                return
            time.sleep(POLL_SECONDS)

    def _wait(self, key: str) -> dict[str, Any]:
        while True:
            running = self.is_running()  # asked first: a process leaves its result before it ends
            outcome = json.loads(self.result_file.read_text()) if self.result_file.exists() else None
            if outcome is not None and outcome["key"] == key:
                if "error" in outcome:
                    raise Failure(outcome["error"])
                return dict(outcome["result"])
            if not running:
                raise FleetError(
                    "The transaction ended without a result",
                    where=str(self.log_file),
                    seen=self.log_file.read_text(errors="replace")[-2000:].strip() or "nothing in its log",
                    remedy="see the log; what served before serves on, and the next run tidies up",
                )
            time.sleep(POLL_SECONDS)


class Failure(FleetError):
    """A failure that another process had, with all keys of its result."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__(result["what"], where=result["where"], seen=result["seen"], remedy=result["remedy"])
        self.result = dict(result)

    def as_result(self) -> dict[str, Any]:
        """Return the keys that the other process gave."""
        return self.result


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
    )


def keep_code(host_root: Path) -> Path:
    """Keep the code that runs here below `host_root`, and return what to put on Python's path for it.

    A module's code comes to a host as an archive that is gone when the module ends.
    """
    archive = next((path for path in Path(__file__).parents if path.suffix == ".zip" and path.is_file()), None)
    if archive is None:  # installed as files
        return Path(__file__).parents[6]
    content = archive.read_bytes()
    directory = host_root / "agent"
    kept = directory / f"{hashlib.sha256(content).hexdigest()[:16]}.zip"
    if not kept.exists():
        make_directory(directory)
        replace_file(kept, content)
    return kept


def install_guard(host_root: Path) -> None:
    """Have systemd run the guard with this code; where there is no systemd, nothing watches."""
    code = keep_code(host_root)
    for path in code.parent.glob("*.zip") if code.suffix == ".zip" else ():
        if path != code:
            path.unlink()
    if not SYSTEMD.is_dir():
        return
    start = f'{sys.executable} -c "{LAUNCHER}" {code}'
    units = {
        GUARD_SERVICE: GUARD_SERVICE_UNIT.format(command=f"{start} guard {host_root}"),
        GUARD_TIMER: GUARD_TIMER_UNIT.format(seconds=GUARD_SECONDS),
        SCRUB_SERVICE: SCRUB_SERVICE_UNIT.format(command=f"{start} scrub {host_root}"),
        SCRUB_TIMER: SCRUB_TIMER_UNIT,
    }
    changed = [name for name, text in units.items() if _read(UNITS / name) != text]
    for name in changed:
        replace_file(UNITS / name, units[name].encode())
    if changed:
        run_program(["systemctl", "daemon-reload"])
    run_program(["systemctl", "enable", "--now", "--quiet", GUARD_TIMER, SCRUB_TIMER])


def forget(host_root: Path) -> None:
    """Remove the guard and what transactions have left, if the host has no runtime any more."""
    if (host_root / "state.json").exists() or (host_root / "runtimes").exists():
        return
    if (UNITS / GUARD_TIMER).exists():
        run_program(["systemctl", "disable", "--now", "--quiet", GUARD_TIMER, SCRUB_TIMER])
        for name in (GUARD_TIMER, GUARD_SERVICE, SCRUB_TIMER, SCRUB_SERVICE):
            (UNITS / name).unlink(missing_ok=True)
        run_program(["systemctl", "daemon-reload"])
    (host_root / ACCEPTED_LOCK).unlink(missing_ok=True)
    for name in (DIRECTORY, "agent"):
        shutil.rmtree(host_root / name, ignore_errors=True)


def _unexpected(trace: str) -> FleetError:
    return FleetError(
        "The transaction failed in a way that nobody foresaw",
        seen=trace[-2000:],
        remedy="please report it; what served before serves on, and the next run tidies up",
    )


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _key(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(options))).hexdigest()


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Carry out a transaction (``transaction HOST_ROOT RUNTIME``), look after releases (``guard HOST_ROOT``) or after
    their content (``scrub HOST_ROOT``).
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log that shows each step at once
    work, host_root = arguments[0], Path(arguments[1])
    if work == "transaction":
        Transaction(host_root, arguments[2]).carry_out()
        return
    if work == "scrub":
        from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import scrub

        scrub(host_root)
        return
    from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import look_after

    look_after(host_root)
