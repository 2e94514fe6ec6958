# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variable edgeml_rollout: checked, and with its defaults."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, report, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate

VARIABLE = "edgeml_rollout"
#: An address in a message, of which scheme, host and path are kept: the rest may be a password or a token.
_ADDRESS, _KEPT = re.compile(r"""(https?://)(?:[^/@'"\s]*@)?([^?#'"\s]*)[?#]?[^'"\s]*"""), r"\1\2"


@dataclass(frozen=True)
class Settings:
    """How a rollout goes through the fleet; meta/schemas/rollout.schema.json says what each key means."""

    canary: str = ""
    first: int | str = 1
    growth: float = 3
    pause_seconds: float = 0
    max_failed: int | str = 0
    per_site: int = 0
    window: Mapping[str, Any] | None = None
    approval: str | Mapping[str, Any] = "none"
    rollback: bool = False

    def first_size(self, hosts: int) -> int:
        """Return the size of the first wave after the canaries, if `hosts` are to do."""
        return max(1, _amount(self.first, hosts, math.ceil))

    def tolerated(self, hosts: int) -> int:
        """Return how many of a wave of `hosts` may fail. Never all of them."""
        return min(max(hosts - 1, 0), _amount(self.max_failed, hosts, math.floor))


def _amount(value: int | str, hosts: int, rounded: Any) -> int:
    return int(rounded(hosts * int(value[:-1]) / 100)) if isinstance(value, str) else value


def read_settings(value: Any) -> Settings:
    """Return the settings that a person wrote, with the defaults; None for all defaults.

    Raises
    ------
    FleetError
        With all that is wrong, each with its file, line, value and what is allowed.
    """
    if value is None:
        return Settings()
    known = {VARIABLE: value}
    problems = validate(value, "rollout", prefix=(VARIABLE,))
    for key, remedy in (("growth", "give 1 or more"), ("pause_seconds", "give 0 or more")):
        number = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(number, float) and not math.isfinite(number):
            problems.append(Problem("A number must be finite", (VARIABLE, key), shown(number), remedy))
    problems = [
        replace(problem.located(origins(known, problem.path)), seen=_ADDRESS.sub(_KEPT, problem.seen))
        for problem in problems
    ]
    if problems:
        raise problems[0].error() if len(problems) == 1 else FleetError(report(problems).removesuffix("."))
    return Settings(**native(value))


def check_agreement(value: Any, hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> None:
    """Raise FleetError if `hosts` have other values of the variable. `value` is what the first of them has in the play.

    A variable of the play goes before those of hosts, which then do not matter.
    """
    by_value: dict[str, tuple[str, Any]] = {}
    for host in hosts:
        variables = hostvars[host]
        of_host = native(variables[VARIABLE]) if VARIABLE in variables else None
        by_value.setdefault(json.dumps(of_host, sort_keys=True), (host, of_host))
    first = json.dumps(native(value), sort_keys=True)
    if len(by_value) > 1 and first in by_value:
        raise FleetError(
            f"{VARIABLE} differs between hosts of one rollout",
            where=VARIABLE,
            seen="; ".join(f"{host}: {_ADDRESS.sub(_KEPT, shown(of_host))}" for host, of_host in by_value.values()),
            remedy="set it in group_vars/all or by -e, or run the rollout with --limit for each part of the fleet",
        )
