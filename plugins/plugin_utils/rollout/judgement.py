# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of the hosts of a wave, and whether the next wave may begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.runtimes import taken_back
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import (
    aligned,
    encodable,
    listed,
    printable,
    unframed,
)

#: Where the playbook keeps what it learned of a host: before its wave, before its turn, what failed, after its turn,
#: after the pause.
OPENED = "edgeml_rollout_opened"
BEFORE = "edgeml_rollout_before"
FAILURE = "edgeml_rollout_failure"
AFTER = "edgeml_rollout_after"
WATCHED = "edgeml_rollout_watched"
RESULT = "inference_runtime_result"

_NAMED = 8
_ROWS = 20
_LATENCIES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class HostOutcome:
    """`state` is done, failed or pending, or in check mode planned. `runtimes` are as the host tells them."""

    host: str
    state: str
    reason: str = ""
    lost: bool = False
    """Whether it is pending since it was lost in its wave."""
    runtimes: Sequence[Mapping[str, Any]] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    known: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    """Tries in the host's history before its turn, as `name_of_try` names them."""


def outcome_of(host: str, variables: Mapping[str, Any], watched: bool = False) -> HostOutcome:
    """Return what became of a host. `watched` also takes what it told after the pause."""
    before, after = _mapping(variables.get(BEFORE)), _mapping(variables.get(AFTER))
    last = _mapping(variables.get(WATCHED)) if watched else after
    runtimes = _runtimes(last) or _runtimes(after)
    known = frozenset(name_of_try(e) for r in _runtimes(before) for e in r.get("history", ()))
    gates = [gate for answer in _answers(variables.get(RESULT)) for gate in answer.get("gates") or ()]
    failure = _mapping(variables.get(FAILURE))
    lost = next((a for a in (after, *_answers(variables.get(RESULT))) if a.get("unreachable")), None)
    state, reason = "done", ""
    if waits_for := _waits_for(host, variables):
        return HostOutcome(host, "pending", waits_for)
    if not before:
        state, reason = "failed", "It failed before its turn"
    elif before.get("unreachable"):
        state, reason = "pending", unframed(before.get("msg"))
    elif lost:
        state, reason = "pending", f"It was lost in its wave: {unframed(lost.get('msg'))}"
    elif failure:
        state, reason = "failed", failure_reason(failure)
    elif not after:  # it left the play at the task that could not reach it
        state, reason = "pending", "It was lost in its wave"
    elif after.get("failed"):
        state, reason = "failed", f"It cannot tell what it runs: {unframed(after.get('msg'))}"
    elif watched and last.get("unreachable"):
        state, reason = "failed", f"It does not answer since its release changed: {unframed(last.get('msg'))}"
    elif faults := _faults(runtimes, known):
        state, reason = "failed", "; ".join(faults)
    is_lost = state == "pending" and not before.get("unreachable")
    return HostOutcome(host, state, encodable(reason), is_lost, runtimes, gates, known)


def _waits_for(host: str, variables: Mapping[str, Any]) -> str:
    """Return why a host was not tried in its wave, "" if it was."""
    return str(_mapping(_mapping(variables.get(OPENED)).get("waiting")).get(host, ""))


def failure_reason(failure: Mapping[str, Any]) -> str:
    """Return why a task failed: {"task", "result", "hidden"}, the result perhaps that of a loop."""
    name, result = str(failure.get("task") or "a task"), _mapping(failure.get("result"))
    if failure.get("hidden"):
        return f"{name}: its answer is hidden, since it may hold a secret"
    failed = next((turn for turn in result.get("results") or () if _mapping(turn).get("failed")), result)
    return f"{name}: {unframed(failed.get('msg') or 'failed')}"


def name_of_try(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells a try from others. By their clocks alone, a host's tries may all be at the same time."""
    return tuple(str(entry.get(key) or "") for key in ("time", "release", "place"))


def _faults(runtimes: Sequence[Mapping[str, Any]], known: frozenset[tuple[str, ...]]) -> list[str]:
    """Return what is wrong with what a host serves."""
    faults = []
    for runtime in runtimes:
        new = [entry for entry in runtime.get("history") or () if name_of_try(entry) not in known]
        if back := taken_back(new):
            faults.append(f"The release {str(back.get('release'))[:12]} was rolled back: {back.get('reason')}")
        elif runtime.get("active") and not runtime.get("serving"):
            faults += [str(text) for text in runtime.get("drift") or ()] or [
                f"The runtime {runtime['name']} does not serve"
            ]
    return faults


@dataclass(frozen=True)
class Verdict:
    """Whether the rollout goes on, and if not, why."""

    stop: bool
    reason: str = ""


def judge(outcomes: Sequence[HostOutcome], tolerated: int) -> Verdict:
    """Return whether so many failures are allowed. Pending hosts count neither way, unless all were lost."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    tried = [outcome for outcome in outcomes if outcome.state != "pending"]
    if not tried and (lost := [outcome for outcome in outcomes if outcome.lost]):
        return Verdict(True, f"all {len(lost)} hosts that were to do were lost: {reasons(lost)}")
    if not failed or (len(failed) <= tolerated and len(failed) < len(tried)):
        return Verdict(False)
    return Verdict(
        True, f"{len(failed)} of {len(tried)} hosts failed, {min(tolerated, len(tried) - 1)} may: {reasons(failed)}"
    )


def reasons(failed: Sequence[HostOutcome]) -> str:
    """Return hosts and why they failed; those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for outcome in failed:
        by_reason.setdefault(printable(outcome.reason), []).append(outcome.host)
    return "; ".join(f"{listed(hosts, _NAMED)}: {reason.rstrip('.')}" for reason, hosts in by_reason.items())


def table(title: str, outcomes: Sequence[HostOutcome]) -> str:
    """Return a line for each host, up to a number of them: those that are not done first."""
    rows: list[tuple[object, ...]] = [("host", "result", "release", "models", "latency")]
    shown = sorted(outcomes, key=lambda outcome: outcome.state == "done")[:_ROWS] if len(outcomes) > _ROWS else outcomes
    for outcome in shown:
        active = [_mapping(runtime.get("active")) for runtime in outcome.runtimes if runtime.get("active")]
        models = [f"{m.get('name')} {m.get('version')}" for release in active for m in release.get("models", ())]
        rows.append(
            (
                outcome.host,
                outcome.state,
                ", ".join(str(release.get("id"))[:12] for release in active) or "-",
                ", ".join(models) or "-",
                _latency(outcome.gates),
            )
        )  # fmt: skip
    lines = [title, *("  " + text for text in aligned(rows))]
    if len(shown) < len(outcomes):
        lines.append(f"  and {len(outcomes) - len(shown)} more")
    lines += [
        f"  {state}: {reasons(those)}"
        for state in ("failed", "pending")
        if (those := [outcome for outcome in outcomes if outcome.state == state])
    ]
    return "\n".join(lines)


def _latency(gates: Sequence[Mapping[str, Any]]) -> str:
    """Return the measurement that comes closest to its objective."""
    measured = [gate for gate in gates if gate.get("gate") in _LATENCIES and gate.get("allowed")]
    if not measured:
        return "-"
    worst = max(measured, key=lambda gate: float(gate["measured"]) / float(gate["allowed"]))
    figures = f"{float(worst['measured']):.3g} of {float(worst['allowed']):.3g} ms"
    return f"{worst.get('model')} {worst['gate']} {figures}".strip()


def planned(host: str, variables: Mapping[str, Any]) -> tuple[str, str]:
    """Return a host and what its release would change, for check mode."""
    failure = _mapping(variables.get(FAILURE))
    if failure:
        return host, f"fails: {failure_reason(failure)}"
    if waits_for := _waits_for(host, variables):
        return host, f"pending: {waits_for}"
    if _mapping(variables.get(BEFORE)).get("unreachable"):
        return host, "pending: it cannot be reached"
    parts = []
    for answer in _answers(variables.get(RESULT)):
        plan = _mapping(answer.get("plan"))
        models = [
            f"{model['name']} {_version(model.get('before'))} -> {_version(model.get('after'))}"
            for model in plan.get("models") or ()
        ]
        image = ["image"] if plan.get("image") else []
        settings = [str(entry["key"]) for entry in plan.get("settings") or ()]
        what = ", ".join([*image, *models, *settings])
        if plan.get("action", "none") != "none":
            parts.append(f"{plan.get('runtime')}: {plan['action']}" + (f" ({what})" if what else ""))
    return host, "; ".join(parts) or "what is around the release"


def _version(model: Any) -> str:
    return str(_mapping(model).get("version", "none"))


def _answers(result: Any) -> list[Mapping[str, Any]]:
    """Return the answer of a module, or of each turn of a loop."""
    answer = _mapping(result)
    turns = answer.get("results")
    found = turns if isinstance(turns, list) else [answer] if answer else []
    return [_mapping(turn) for turn in found]


def _runtimes(answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    runtimes = answer.get("runtimes")
    return runtimes if isinstance(runtimes, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
