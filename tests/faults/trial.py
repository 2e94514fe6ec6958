# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One trial: a release replaces another under load, a fault comes at one of its steps, and what is left is judged."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.tests.faults.box import PATIENCE
from ansible_collections.edgeml.fleet.tests.faults.rig import FACTORS, Clients, Rig

#: Steps of the transaction as its log names them, and seconds within which the fault comes after a step's beginning.
STEPS = {"stage": 1.2, "candidate": 1.5, "gates": 0.6, "switch": 0.4, "commit": 0.1}


@dataclass(frozen=True)
class Fault:
    """What goes wrong. `takes_down` says that nothing can be served meanwhile, whatever this collection does.

    `begin` comes at the step; `end` when the transaction has ended, `finishes` that it is to succeed all the same.
    """

    name: str
    begin: Callable[[Attempt], object] = lambda attempt: None
    end: Callable[[Attempt], object] = lambda attempt: None
    takes_down: bool = False
    finishes: bool = False
    environment: dict[str, str] | None = None


@dataclass
class Result:
    """What became of a trial: requests sent and lost, the release that served afterwards, what was wrong."""

    fault: str
    step: str
    sent: int = 0
    lost: int = 0
    served: str = ""
    wrong: list[str] = field(default_factory=list)


class Attempt:
    """A transaction of a rig that is under way."""

    def __init__(self, rig: Rig, options: dict[str, Any], others: dict[str, Any]) -> None:
        self.rig = rig
        self.box = rig.box
        self.options = options
        self.others = others
        self.asking: subprocess.Popen[bytes] | None = None
        self.told: dict[str, Any] = {}

    def kill(self, what: str) -> None:
        """Kill the processes in the box whose command line holds `what`."""
        self.box.run(["pkill", "-KILL", "-f", what])

    def another(self) -> None:
        """Let another controller ask for another release."""
        process = self.box.converge(self.others)
        self.told = _answer(process.communicate(timeout=PATIENCE)[0]) or {}


def _power_cut(attempt: Attempt) -> None:
    attempt.box.cut_power()
    attempt.box.power_on()


def _power_cycle(attempt: Attempt) -> None:
    attempt.box.power_off()
    attempt.box.power_on()


#: Every kind of fault.
FAULTS = [
    Fault("transaction killed", lambda a: a.kill("_release.agent import main")),
    Fault("connection lost", lambda a: a.kill("runtime_release import converge"), finishes=True),
    Fault("two controllers", Attempt.another, finishes=True),
    Fault("power cut", _power_cut, takes_down=True),
    Fault("disk fails", lambda a: a.box.fail_disk(), _power_cycle, takes_down=True),
    Fault("disk full", lambda a: a.box.fill_disk(), lambda a: a.box.free_disk()),
    Fault("engine restarted", lambda a: a.box.restart_engine(signal.SIGTERM)),
    Fault("engine killed", lambda a: a.box.restart_engine(signal.SIGKILL)),
    Fault("mirror gone", lambda a: a.rig.stop_mirror(), lambda a: a.rig.start_mirror()),
    # Before 2000 no certificate of the mirror is valid yet.
    Fault("clock at 1970", environment={"FAKETIME": "@1970-01-02 00:00:00"}),
    Fault("clock at 2040", environment={"FAKETIME": "@2040-01-02 00:00:00"}, finishes=True),
]


def plan(trials: int, seed: int) -> list[tuple[Fault, str, float]]:
    """Return so many trials (fault, step, seconds after the step's beginning): every pair before one comes again."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    pairs = [(fault, step) for fault in FAULTS for step in STEPS if fault.environment is None or step == "stage"]
    chosen: list[tuple[Fault, str]] = []
    while len(chosen) < trials:
        chance.shuffle(pairs)
        chosen += pairs
    return [(fault, step, chance.uniform(0, STEPS[step])) for fault, step in chosen[:trials]]


def carry_out(rig: Rig, fault: Fault, step: str, delay: float) -> Result:
    """Carry out a trial, and return what became of it. The rig then serves the release that the trial brought."""
    before = _only(rig.served())
    after = FACTORS[(FACTORS.index(before) + 1) % len(FACTORS)]
    other = next(factor for factor in FACTORS if factor not in (before, after))
    attempt = Attempt(rig, rig.options[after], rig.options[other])
    result = Result(fault.name, step)
    log = rig.box.root / "transactions" / "runtime.log"
    log.unlink(missing_ok=True)
    with Clients(rig.rest_port) as clients:
        preloaded = fault.environment and {"LD_PRELOAD": str(rig.faketime), **fault.environment}
        asking = rig.box.converge(rig.options[after], preloaded)
        _wait_for_step(log, step, asking)
        time.sleep(delay)
        fault.begin(attempt)
        out, error = asking.communicate(timeout=PATIENCE)
        fault.end(attempt)
        told = _answer(out)
        if not rig.wait_until_served():
            result.wrong.append("nothing serves")
        # One that came when the first had ended already was served as well.
        second = {other} if attempt.told.get("changed") else set()
        _judge(rig, result, before, {after, *second})
    result.sent = sum(clients.answers.values()) + len(clients.failed)
    result.lost = len(clients.failed)
    if not fault.takes_down and clients.failed:
        result.wrong.append(f"{result.lost} requests lost: {clients.failed[0]}")
    if set(clients.answers) - {before, after, *second}:
        result.wrong.append(f"answers of releases that nobody asked for: {clients.answers}")
    if attempt.told and not second and "Another controller" not in attempt.told["what"]:
        result.wrong.append(f"the second controller was told: {attempt.told}")
    _check_next_run(rig, result, rig.options[after], after, finished=fault.finishes and not second)
    if result.wrong:
        result.wrong.append(f"the run had said: {told or error.decode(errors='replace')[-800:]}")
        result.wrong.append(rig.box.say())
    return result


def _wait_for_step(log: Path, step: str, asking: subprocess.Popen[bytes]) -> None:
    """Wait until the transaction's log tells of the step, or the transaction has ended without."""
    while asking.poll() is None:
        if log.exists() and f"{step}:" in log.read_text(errors="replace"):
            return
        time.sleep(0.005)


def _judge(rig: Rig, result: Result, before: int, new: set[int]) -> None:
    """Once the guard has looked, one release serves, and the state says which."""
    while rig.box.information()["running"]:
        time.sleep(0.1)
    rig.box.guard()
    served = rig.served()
    if len(served) != 1 or not served <= {before, *new}:
        result.wrong.append(f"served were {served or 'none'} of {before} (before) and {new} (new)")
    result.served = "old" if served == {before} else "new" if served and served <= new else "?"
    told = rig.box.information()
    running = rig.box.containers()
    if list(running) != ["edgeml-runtime"]:
        result.wrong.append(f"these containers run: {running}")
    active = told["active"]["models"][0]["version"] if told["active"] else None
    if active != f"{_first(served)}.0.0":
        result.wrong.append(f"the state says {active} and {told['drift']}, {served} serves")


def _check_next_run(rig: Rig, result: Result, options: dict[str, Any], factor: int, *, finished: bool) -> None:
    """The next run succeeds, serves what it was asked for and leaves nothing; the one after it finds nothing to do."""
    for run, changes in (("the next run", not finished), ("the run after it", False)):
        out, error = rig.box.converge(options).communicate(timeout=PATIENCE)
        told = _answer(out)
        if told is None or told.get("failed"):
            result.wrong.append(f"{run} fails: {told or error.decode(errors='replace')[-800:]}")
        elif told["changed"] and not changes:
            result.wrong.append(f"{run} finds something to do: {told['plan']['faults'] or told['plan']}")
    if rig.served() != {factor}:
        result.wrong.append(f"after the next run {rig.served()} serves, not {factor}")
    staging = rig.box.root / "staging"
    left = sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []
    if left:
        result.wrong.append(f"left behind: {', '.join(left)}")


def _answer(out: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(out))
    except ValueError:
        return None


def _only(served: set[int]) -> int:
    assert len(served) == 1, f"served before the trial: {served}"
    return next(iter(served))


def _first(served: set[int]) -> int | None:
    return min(served, default=None)
