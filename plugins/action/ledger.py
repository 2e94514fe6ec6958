# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what the hosts of a play told of their releases to the fleet's ledger."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.told import told_lines


class ActionModule(ActionBase):
    """All of ledger: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"changed", "lines"}: how many lines the ledger gained."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, options = task_vars or {}, self._task.args
        path, rebuild = str(options["path"]), options.get("state") == "rebuilt"
        # Where the removal failed, the host has left the play.
        removed = variables["ansible_play_hosts"] if options.get("removed") else ()
        lines = told_lines(
            variables["hostvars"], variables["ansible_play_hosts_all"], str(options["variable"]),
            serial=options.get("serial"), removed=removed,
        )  # fmt: skip
        if variables.get("ansible_check_mode"):
            return {**result, "changed": False, "lines": 0}
        try:
            gained = ledger.rebuild(path, lines) if rebuild else ledger.note(path, lines, Display().warning)
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        # A log of what the hosts are is not a change of theirs.
        return {**result, "changed": rebuild and gained > 0, "lines": gained}
