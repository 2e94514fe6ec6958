# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ansible-core the controller needs."""

from __future__ import annotations

import re
import sys

#: As meta/runtime.yml has it.
FLOOR = (2, 19)


def refusal(version: str) -> str:
    """Return in one line why this `version` of ansible-core is not enough; nothing if it is."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release >= FLOOR:
        return ""
    needed = ".".join(map(str, FLOOR))
    return (
        f"edgeml.fleet needs ansible-core {needed} or newer, {version} was seen (Python: {sys.executable}). "
        "Next: install a newer ansible-core, or run in an execution environment that has one."
    )
