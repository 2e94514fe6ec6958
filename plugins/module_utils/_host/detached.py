# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a host that outlives who asked for it: a lost connection, a killed controller or a killed module.

It runs in a process of its own, under systemd where there is one. The next run attaches to it, or finds what became of
it. The code is that of the module that asked (own_code.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object, read_or_set_aside
from ansible_collections.edgeml.fleet.plugins.module_utils._host.own_code import keep_code

POLL_SECONDS = 0.05
#: Seconds that a process may take from its start to its lock, on a slow board, and from SIGTERM to its end.
START_SECONDS = 60.0
#: What a process takes along of the environment of who asked for it.
ENVIRONMENT = ("PATH", "LANG", "DOCKER_HOST", "DOCKER_CONFIG")
#: And this with the request, which root alone reads and which is there after a restart: it may hold passwords.
PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
SYSTEMD = Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")


class Work:
    """One kind of work on a host: at most one at a time, whoever asks.

    Parameters
    ----------
    directory : Path
        Of request, result, log and lock, named `name`.
    home : Path
        Where the code is kept, below ``agent/``.
    unit : str
        What the units of systemd are called, before a number.
    launch : sequence of str
        Arguments of Python after ``-c`` that carry it out; the path of the code goes before the second one.
    """

    noun = "work"

    def __init__(self, directory: Path, name: str, home: Path, unit: str, launch: Sequence[str]) -> None:
        self.home = home
        self.unit = unit
        self.launch = launch
        self.request_file = directory / f"{name}.request"
        self.result_file = directory / f"{name}.result"
        self.log_file = directory / f"{name}.log"
        self.lock_file = directory / f"{name}.lock"
        #: There from the start of the work until somebody has heard its result.
        self.untold_file = directory / f"{name}.untold"
        #: Hears of damaged files; a module's own warnings are told to who runs it.
        self.warn: Callable[[str], object] = _log

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what a module's `options` ask for, apart from this process, and return the module's result.

        If the same runs already, its result is waited for.

        Raises FleetError for what it raises there, or if another one runs.
        """
        return self.wait(self.begin(options))

    def begin(self, options: Mapping[str, Any]) -> str:
        """Start it, if it does not run already; return the key to wait with."""
        key = key_of(options)
        make_directory(self.lock_file.parent)
        with self._starting():
            self._let_end()
            if self.is_running() and self.is_in_the_way(key, options):
                self.stop()
            if not self.is_running():
                self._start(options)
        return key

    def is_in_the_way(self, key: str, options: Mapping[str, Any]) -> bool:
        """Return whether what runs now has to stop for this; raise FleetError if this has to wait."""
        raise NotImplementedError

    def running_request(self) -> dict[str, Any] | None:
        """Return the request that is carried out now, None if it has just ended."""
        request = read_object(self.request_file)
        return request if _is_request(request) else None

    def is_running(self) -> bool:
        """Return whether a process works on it now."""
        try:
            # Shared, so that who asks at the same time does not take this for work.
            with self.lock_file.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def stop(self) -> None:
        """End the process that works on it."""
        deadline = time.monotonic() + START_SECONDS
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self.lock_file.read_text()), signal.SIGTERM)
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def step(self) -> str:
        """Return the last line of what a process says it does; empty if none runs."""
        if not self.is_running():
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return lines[-1] if lines else ""

    def carry_out(
        self,
        perform: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        attend: bool = True,
        try_again: Callable[[FleetError], bool] = lambda error: False,
    ) -> None:
        """Do what was requested, in this process, and leave the result where it is waited for.

        Without `attend` nothing happens if another process works on it. After a failure of which `try_again` says so,
        the request stays for a later process.
        """
        make_directory(self.lock_file.parent)
        if not attend and self.is_running():
            return
        with self.lock_file.open("a+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever asks whether it runs holds it for a moment
            request = self._request()
            if request is None:
                return
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            lock.flush()
            self.result_file.unlink(missing_ok=True)  # that of an earlier try
            os.environ.update(request.get("environment", {}))
            done = True
            try:
                outcome = {"result": perform(request["options"])}
            except FleetError as error:
                outcome = {"error": error.as_result()}
                done = not try_again(error)
            except Exception:
                traceback.print_exc()
                outcome = {"error": self._unexpected(traceback.format_exc()).as_result()}
            replace_file(self.result_file, json.dumps({**outcome, "key": request["key"]}).encode(), 0o600)
            if done:
                self.request_file.unlink()

    def has_result(self, key: str) -> bool:
        """Return whether what was begun with this key has ended."""
        result = self._result()
        return result is not None and result["key"] == key

    def untold(self) -> dict[str, Any] | None:
        """Return the end that nobody has heard, once: {"result"} or {"error"}; None if there is none, or it is lost."""
        if not self.untold_file.exists() or not self.result_file.exists() or self.is_running():
            return None
        self.untold_file.unlink()
        return self._result()

    def wait(self, key: str, look: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Return the result of what runs with this key. `look` is called meanwhile; what it raises is raised."""
        while True:
            running = self.is_running()  # asked first: a process leaves its result before it ends
            outcome = self._result()
            if outcome is not None and outcome["key"] == key:
                with contextlib.suppress(FileNotFoundError):
                    self.untold_file.unlink()
                if "error" in outcome:
                    raise Failure(outcome["error"])
                return dict(outcome["result"])
            if not running:
                raise FleetError(
                    f"The {self.noun} ended without a result",
                    where=str(self.log_file),
                    seen=self.log_file.read_text(errors="replace")[-2000:].strip() or "nothing in its log",
                    remedy="see the log; what served before serves on, and the next run tidies up",
                )
            look()
            time.sleep(POLL_SECONDS)

    def ask_later(self, options: Mapping[str, Any]) -> None:
        """Leave a request for a process that begins later, unless one works now or there is another request."""
        make_directory(self.lock_file.parent)
        with self._starting():
            self._let_end()
            if not self.is_running() and self._request() is None:
                self._leave_request(options)

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Keep others from starting it, or from leaving a request, at the same time."""
        with self.lock_file.with_suffix(".start").open("wb") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            yield

    def _let_end(self) -> None:
        """Wait for the end of a process that has left its result, which is not that of the next one."""
        while self.is_running() and self.result_file.exists():
            time.sleep(POLL_SECONDS)

    def _request(self) -> dict[str, Any] | None:
        return read_or_set_aside(self.request_file, _is_request, self.warn)

    def _result(self) -> dict[str, Any] | None:
        return read_or_set_aside(self.result_file, _is_result, self.warn)

    def _leave_request(self, options: Mapping[str, Any]) -> None:
        request = {"options": dict(options), "key": key_of(options), "environment": environment(PROXY)}
        replace_file(self.request_file, json.dumps(request).encode(), 0o600)

    def command(self) -> list[str]:
        """Return what carries it out, with code that stays."""
        return [sys.executable, "-c", self.launch[0], str(keep_code(self.home)), *self.launch[1:]]

    def _start(self, options: Mapping[str, Any]) -> None:
        self.lock_file.touch(mode=0o600)
        self.untold_file.touch(mode=0o600)
        self.result_file.unlink(missing_ok=True)
        self._leave_request(options)
        self.log_file.write_bytes(b"")
        command = self.command()
        if SYSTEMD.is_dir():
            unit = f"{self.unit}-{time.time_ns() // 1_000_000}"
            log = f"append:{self.log_file}"
            prefix = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
            prefix += [f"--property=Standard{stream}={log}" for stream in ("Output", "Error")]
            prefix += [f"--setenv={name}={value}" for name, value in environment(ENVIRONMENT).items()]
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
                env=environment(ENVIRONMENT),
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

    def _unexpected(self, trace: str) -> FleetError:
        return FleetError(
            f"The {self.noun} failed in a way that nobody foresaw",
            seen=trace[-2000:],
            remedy="please report it; what served before serves on, and the next run tidies up",
        )


class Failure(FleetError):
    """A failure that another process had, with all keys of its result."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__(result["what"], where=result["where"], seen=result["seen"], remedy=result["remedy"])
        self.result = dict(result)

    def as_result(self) -> dict[str, Any]:
        """Return the keys that the other process gave."""
        return self.result


def _is_request(content: Mapping[str, Any]) -> bool:
    return (
        isinstance(content.get("key"), str)
        and isinstance(content.get("options"), dict)
        and is_environment(content.get("environment", {}))
    )


def _is_result(content: Mapping[str, Any]) -> bool:
    error = content.get("error")
    if isinstance(error, dict):
        told = all(isinstance(error.get(name), str) for name in ("what", "where", "seen", "remedy"))
    else:
        told = "error" not in content and isinstance(content.get("result"), dict)
    return told and isinstance(content.get("key"), str)


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def is_environment(variables: Any) -> bool:
    """Return whether a process can take these for variables of its environment."""
    return isinstance(variables, dict) and all(isinstance(value, str) for value in variables.values())


def environment(names: Sequence[str]) -> dict[str, str]:
    """Return those of these variables that are set here."""
    return {name: os.environ[name] for name in names if name in os.environ}


def install_units(units: Mapping[str, str]) -> None:
    """Have systemd run the timers among these units; without systemd nothing does."""
    if not SYSTEMD.is_dir():
        return
    changed = [name for name, text in units.items() if _read(UNITS / name) != text]
    for name in changed:
        replace_file(UNITS / name, units[name].encode())
    if changed:
        run_program(["systemctl", "daemon-reload"])
    run_program(["systemctl", "enable", "--now", "--quiet", *filter(_is_timer, units)])


def remove_units(*names: str) -> None:
    """Take back what `install_units` did. What a timer has begun is stopped: it would write to what is removed next."""
    there = [name for name in names if (UNITS / name).exists()]
    if not there:
        return
    run_program(["systemctl", "disable", "--now", "--quiet", *filter(_is_timer, there)])
    run_program(["systemctl", "stop", *there])
    for name in there:
        (UNITS / name).unlink()
    run_program(["systemctl", "daemon-reload"])


def _is_timer(name: str) -> bool:
    return name.endswith(".timer")


def key_of(options: Mapping[str, Any]) -> str:
    """Return what two requests for the same have in common."""
    return hashlib.sha256(canonical_json(dict(options))).hexdigest()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
