# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters for what is shown at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.measurements import measurements


class FilterModule:
    """Filters of edgeml.fleet."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"measurements": measurements}
