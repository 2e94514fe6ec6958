# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The course of a rollout with hosts that answer what a test says."""

from __future__ import annotations

from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.course import JUDGED, Course
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.judgement import AFTER, BEFORE, FAILURE, OPENED
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import Settings
from ansible_collections.edgeml.fleet.tests.support.told_releases import release, told

SITES = {"a": "berlin", "b": "berlin", "c": "lyon", "d": "lyon"}


def history(outcome: str, name: str, second: int, reason: str = "", by: str = "controller") -> dict[str, Any]:
    return {
        "time": f"2026-11-28T06:00:{second:02}Z", "runtime": "runtime", "release": release(name)["id"], "attempt": name,
        "outcome": outcome, "reason": reason, "by": by, "models": release(name)["models"], "gates": [],
    }  # fmt: skip


OLD = history("active", "o", 1)
NEW = history("active", "n", 2)
GATE = {"gate": "p95", "model": "digits", "measured": 31.2, "allowed": 25.0, "unit": "ms", "passed": False}
REFUSAL = "The model 'digits' misses its latency objective"

DONE = {BEFORE: told("o", OLD), AFTER: told("n", OLD, NEW)}
REFUSED = {
    BEFORE: told("o", OLD),
    AFTER: told("o", OLD, history("refused", "n", 2, REFUSAL)),
    FAILURE: {
        "task": "Make the release of each runtime active",
        "hidden": False,
        "result": {"msg": "One or more items failed", "results": [{"failed": True, "msg": REFUSAL, "gates": [GATE]}]},
    },
    "inference_runtime_result": {"results": [{"failed": True, "msg": REFUSAL, "gates": [GATE]}]},
}
LOST = {BEFORE: {"unreachable": True, "msg": "Task failed: Connection timed out"}, AFTER: {"skipped": True}}

GO_ON = {"stop": False, "reason": "", "red": False, "pause": False}
STOP = {"stop": True, "reason": "Wave 2 of 3: because", "red": True, "pause": False}
OPEN = {OPENED: {"stop": False}, JUDGED: GO_ON}


def run(
    hosts: dict[str, dict[str, Any]], *, check_mode: bool = False, done: int = 0, finished: int = 0, **settings: Any
) -> Course:
    """Return a rollout whose waves are a, then b and c, then d."""
    plan = {
        "rollout": "7.1",
        "waves": [
            {"number": 1, "name": "canary", "hosts": ["a"], "keeper": "wave-1"},
            {"number": 2, "name": "", "hosts": ["b", "c"], "keeper": "wave-2"},
            {"number": 3, "name": "", "hosts": ["d"], "keeper": "wave-3"},
        ],
        "order": list("abcd"), "sites": SITES, "pending": {}, "unchanged": 0, "done": done,
        "finished": finished, "elsewhere": 0, "mirrors": [],
    }  # fmt: skip
    variables = {name: hosts.get(name, {}) for name in (*SITES, "wave-1", "wave-2", "wave-3")}
    return Course(plan, Settings(**settings), 7, variables, check_mode)
