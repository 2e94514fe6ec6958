# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The course of a rollout: what is said, written and decided before a wave, after it, and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports import preflight
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import events
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.approval import ask
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.judgement import (
    BEFORE,
    OPENED,
    HostOutcome,
    failure_reason,
    judge,
    name_of_try,
    outcome_of,
    planned,
    reasons,
    table,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.plan import title_of, wave_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import Settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.told import told_lines
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import local_time, next_opening, seconds_left

#: Where the playbook keeps the answers of the steps, and of a host that went back.
JUDGED = "edgeml_rollout_judged"
WATCHED = "edgeml_rollout_watched_wave"
WENT_BACK = "edgeml_rollout_back"
NOT_BACK = "edgeml_rollout_back_failure"
#: What a mirror says that was brought up to date.
MIRROR_DONE = "edgeml_rollout_mirror_done"


@dataclass(frozen=True)
class Step:
    """What a step says, writes to the ledger, returns, and how long it waits."""

    text: str
    result: dict[str, Any]
    lines: Sequence[Mapping[str, Any]] = field(default_factory=list)
    pause: float = 0


class Course:
    """One run of a rollout by its `plan`, see make_plan."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        settings: Settings,
        serial: int,
        hostvars: Mapping[str, Mapping[str, Any]],
        check_mode: bool = False,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.common = {"serial": serial, "rollout": plan["rollout"]}
        self.hostvars = hostvars
        self.check_mode = check_mode
        self.last = max((wave["number"] for wave in plan["waves"]), default=0)

    def wave(self, host: str) -> Mapping[str, Any]:
        """Return the wave of a host."""
        return wave_of(self.plan, host)

    # -- before a wave ---------------------------------------------------------------------------------------------

    def open(self, wave: Mapping[str, Any], prompt: Callable[[str], str]) -> Step:
        """Decide whether a wave may begin: is the window open, is it approved."""
        waiting = self._waiting(wave)
        if self.check_mode:
            return Step("", {"stop": False, "waiting": waiting})
        title = title_of(wave, self.last)
        is_first = wave is self.plan["waves"][0]
        left, closed = self._window(title)
        # Nothing went wrong: whoever runs this on a schedule gets to it in time. Nor did anything begin yet.
        if closed:
            return self._stop(closed, failed=False, told=not is_first)
        if not is_first or self.plan["done"] or self.plan["finished"]:
            rollout, number = str(self.plan["rollout"]), int(wave["number"])
            answer = ask(self.settings.approval, rollout, number, prompt, longest=left)
            if closed := self._window(title)[1]:
                return self._stop(closed, failed=False, told=not is_first)
            if not answer.yes:
                return self._stop(
                    f"{title}: it is not approved at {answer.where}. Seen: {answer.seen}. What to do: have it say yes, "
                    "and run the playbook again",
                    failed=True,
                )
        sizes = ", ".join(str(len(one["hosts"])) for one in self.plan["waves"])
        reason = f"{len(self.plan['order'])} hosts, waves of {sizes}"
        started = ledger.line("", events.STARTED, reason=reason, hosts=list(self.plan["order"]), **self.common)
        return Step("", {"stop": False, "waiting": waiting}, [started] if is_first else [])

    def _window(self, title: str) -> tuple[float, str]:
        """Return for how many seconds the window is open, and why no wave may begin if it is not."""
        window = self.settings.window
        if window is None:
            return math.inf, ""
        now = local_time(window)
        if left := seconds_left(window, now):
            return left, ""
        opens = next_opening(window, now).strftime("%Y-%m-%d %H:%M %Z")
        return 0.0, f"{title}: the window is closed; it opens {opens}. What to do: run the playbook again then"

    def _waiting(self, wave: Mapping[str, Any]) -> dict[str, str]:
        """Return the hosts that need what their mirror lacks, since this run could not bring it up to date."""
        mirrors = self.plan["mirrors"]
        outdated = [host for host in mirrors if not self.hostvars[host].get(MIRROR_DONE)]
        if not outdated:
            return {}
        findings = preflight.collect(self.hostvars, [*wave["hosts"], *mirrors], outdated_mirrors=outdated)
        waiting = preflight.waiting(findings)
        return {
            host: f"Its mirror could not be brought up to date: {reason}"
            for host, reason in waiting.items()
            if host in wave["hosts"]
        }

    def _stop(self, reason: str, failed: bool, told: bool = True) -> Step:
        line = ledger.line("", events.STOPPED, reason=reason, **self.common)
        return Step(reason + ".", {"stop": True, "reason": reason, "red": failed}, [line] if told else [])

    # -- after a wave ----------------------------------------------------------------------------------------------

    def judge(self, wave: Mapping[str, Any], watched: bool = False) -> Step:
        """Tell what became of a wave's hosts, and whether the rollout goes on. `watched` is after the pause."""
        title = title_of(wave, self.last)
        if self.check_mode:
            rows = [planned(host, self.hostvars[host]) for host in wave["hosts"]]
            text = "\n".join([f"{title} would change", *("  " + row for row in aligned(rows))])
            return Step(text, {"stop": False, "pause": False})
        outcomes = self._outcomes(wave, watched)
        verdict = judge(outcomes, self.settings.tolerated(len(wave["hosts"])))
        counts = self._counts(outcomes)
        is_last = wave["number"] == self.last
        pause = 0.0 if watched or verdict.stop or is_last else self.settings.pause_seconds
        told = {(one.host, one.reason) for one in self._outcomes(wave)} if watched else set()
        lines = [text for one in outcomes for text in self._lines(one, (one.host, one.reason) in told)]
        lines.append(ledger.line("", events.WAVE, reason=f"{title}: {counts}", wave=wave["number"], **self.common))
        text = f"{title} after the pause" if watched else title
        text = table(f"{text}: {counts}", outcomes)
        if verdict.stop:
            reason = f"{title}: {verdict.reason}"
            lines.append(ledger.line("", events.STOPPED, reason=reason, **self.common))
            text += f"\n  the rollout ends here: {verdict.reason}"
        elif pause:
            text += f"\n  the next wave begins after {pause:g} s"
        result = {
            "stop": verdict.stop,
            "reason": f"{title}: {verdict.reason}" if verdict.stop else "",
            "red": verdict.stop,
            "pause": pause > 0,
        }
        return Step(text, result, lines, pause)

    def _outcomes(self, wave: Mapping[str, Any], watched: bool = False) -> list[HostOutcome]:
        return [outcome_of(host, self.hostvars[host], watched) for host in wave["hosts"]]

    @staticmethod
    def _counts(outcomes: Sequence[HostOutcome]) -> str:
        states = [outcome.state for outcome in outcomes]
        return ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed", "pending") if state in states)

    def _lines(self, outcome: HostOutcome, is_told: bool) -> list[dict[str, Any]]:
        """Return what the ledger learns of a host: its history, and why it lacks its release if that is silent.

        `is_told` is whether that was told before the pause.
        """
        site = self.plan["sites"][outcome.host]
        lines = ledger.lines_of_history(outcome.host, site, outcome.runtimes)
        new = [entry for entry in lines if name_of_try(entry) not in outcome.known]
        for entry in new:
            entry.update(self.common)
        if not is_told and (outcome.state == "pending" or (outcome.state == "failed" and not _says_why(new))):
            lines.append(ledger.line(outcome.host, outcome.state, site=site, reason=outcome.reason, **self.common))
        return lines

    # -- at the end ------------------------------------------------------------------------------------------------

    def sum_up(self) -> Step:
        """Tell what became of all waves, and which hosts are to go back or count as failed."""
        if self.check_mode:
            return Step("", {"failed_hosts": {}, "roll_back": {}, "red": False, "reason": ""})
        outcomes: list[HostOutcome] = []
        stop: Mapping[str, Any] = {}
        went_wrong = False
        begun = 0
        for wave in self.plan["waves"]:
            # After the pause, else after the wave, else before it.
            answers = [self._answer(wave, name) for name in (WATCHED, JUDGED, OPENED)]
            answer = next((one for one in answers if one), None)
            if answer is None:
                continue
            if answers[1]:
                begun += 1
                outcomes += self._outcomes(wave, watched=bool(answers[0]))
            if answer["stop"]:
                stop, went_wrong = answer, bool(answers[1])
                break
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        left = len(self.plan["order"]) - len(outcomes)
        pending = len(self.plan["pending"]) + sum(outcome.state == "pending" for outcome in outcomes)
        done = sum(outcome.state == "done" for outcome in outcomes)
        text = (
            f"Rollout {self.plan['rollout']}: {begun} of {len(self.plan['waves'])} waves, {done} done, "
            f"{len(failed)} failed, {left} not begun, {pending} pending"
        )
        going_back = self._going_back(outcomes) if went_wrong and self.settings.rollback else {}
        if failed:
            text += f"\n  failed: {reasons(failed)}"
        if stop:
            text += f"\n  ended: {stop['reason']}"
        if going_back:
            text += f"\n  going back: {', '.join(going_back)}"
        if elsewhere := self.plan["elsewhere"]:
            text += f"\n  not finished: {elsewhere} hosts of earlier runs are to do, and are not in this one"
        finished = ledger.line("", events.FINISHED, reason=text.splitlines()[0], **self.common)
        result = {
            "failed_hosts": {outcome.host: outcome.reason for outcome in failed},
            "roll_back": going_back,
            "red": bool(stop.get("red")),
            "reason": stop.get("reason", ""),
        }
        return Step(text, result, [] if stop or left or elsewhere else [finished])

    def went_back(self, hosts: Sequence[str]) -> Step:
        """Tell which of the hosts that were to go back did, and which count as failed since they did not."""
        failed: dict[str, str] = {}
        for host in hosts:
            known = self.hostvars[host]
            if failure := known.get(NOT_BACK):
                failed[host] = f"It did not go back: {failure_reason(failure)}"
            elif not known.get(WENT_BACK):
                failed[host] = "It was lost while it was to go back: what it serves is not known"
        back = [host for host in hosts if host not in failed]
        text = f"Back at the release before: {', '.join(back) or 'none'}"
        for host, reason in failed.items():
            text += f"\n  {host}: {reason}"
        sites = self.plan["sites"]
        lines = told_lines(self.hostvars, back, WENT_BACK)
        lines += [
            ledger.line(host, "failed", site=sites[host], reason=reason, **self.common)
            for host, reason in failed.items()
        ]
        return Step(text, {"failed_hosts": failed}, lines)

    def _answer(self, wave: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """Return what a step told a wave. It tells no host that failed before it, or was lost in the wave."""
        answers = (self.hostvars[host].get(name) for host in (*wave["hosts"], wave["keeper"]))
        return next((answer for answer in answers if isinstance(answer, Mapping) and "stop" in answer), {})

    def _going_back(self, outcomes: Sequence[HostOutcome]) -> dict[str, list[dict[str, str]]]:
        """Return by host the runtimes that this run has changed, with the release that each had before."""
        found: dict[str, list[dict[str, str]]] = {}
        for outcome in outcomes:
            before = self.hostvars[outcome.host].get(BEFORE)
            known = {one["name"]: one.get("active") for one in (before or {}).get("runtimes") or ()}
            for runtime in outcome.runtimes:
                old, new = known.get(runtime["name"]), runtime.get("active")
                if old and new and old["id"] != new["id"]:
                    found.setdefault(outcome.host, []).append({"name": runtime["name"], "release": old["id"]})
        return found


def _says_why(lines: Sequence[Mapping[str, Any]]) -> bool:
    return any(entry["outcome"] in ("refused", "failed", "rolled_back") for entry in lines)
