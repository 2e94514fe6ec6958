# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A try to bring a runtime to a release: what is written down of it, whatever it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import RefusedError, Row
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime


@dataclass
class Try:
    """What a try has brought so far."""

    gates: list[Row] = field(default_factory=list)
    reason: str = ""


@contextmanager
def remembered(installed: InstalledRuntime, desired: Desired, after: dict[str, Any], by: str) -> Iterator[Try]:
    """Write down what becomes of a try, and clear away what a failed one has left."""
    history, attempt = installed.history, desired.attempt_id(after["id"])
    done = Try()
    make_directory(installed.root)
    try:
        yield done
    except FleetError as error:
        refused = isinstance(error, RefusedError)
        gates = error.gates if isinstance(error, RefusedError) else []
        outcome = "refused" if refused else "failed"
        history.add(outcome, after, attempt, by=by, reason=str(error), gates=gates)
        if refused:
            installed.prune(desired.image)
        raise
    history.add("active", after, attempt, by=by, reason=done.reason, gates=done.gates)
