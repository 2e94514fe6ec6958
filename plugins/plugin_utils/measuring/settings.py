# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variable edgeml_measure: checked, and with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import local_time, seconds_left

VARIABLE = "edgeml_measure"
#: Seconds for one host where no window ends them.
LONGEST = 86400.0


@dataclass(frozen=True)
class Settings:
    """How variants are measured; meta/schemas/variables.schema.json says what each key means."""

    window: Mapping[str, Any] | None = None
    models: Sequence[str] | None = None
    again: bool = False
    samples: int = 200
    seconds: float = 5

    def seconds_left(self, moment: datetime | None = None) -> float:
        """Return for how long variants may be measured from now on, 0 if the window is closed."""
        if self.window is None:
            return LONGEST
        return seconds_left(self.window, local_time(self.window, moment))


def read_settings(value: Any) -> Settings:
    """Return the settings that a person wrote, with the defaults; raise InventoryError with all that is wrong."""
    problems = validate(value or {}, "variables", part="measure", prefix=(VARIABLE,))
    if problems:
        raise InventoryError.of([problem.located(origins({VARIABLE: value}, problem.path)) for problem in problems])
    return Settings(**native(value or {}))
