# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check edgeml_rollout, and plan the waves of a rollout."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import events
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.plan import make_plan, table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import check_agreement, read_settings


class ActionModule(ActionBase):
    """All of rollout_plan: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan, see the module's RETURN."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, options = task_vars or {}, self._task.args
        hosts, hostvars = variables["ansible_play_hosts_all"], variables["hostvars"]
        try:
            settings = read_settings(options.get("settings"))
            if options.get("state") == "checked":
                check_agreement(options.get("settings"), hostvars, hosts)
                return {**result, "changed": False}
            serial, path = int(options["serial"]), str(options["ledger"])
            known = ledger.read(path)
            plan = make_plan(hostvars, hosts, variables["groups"], settings, events.progress(known, serial))
            if not variables.get("ansible_check_mode"):
                self._note(plan, known, serial, path)
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(plan, settings.canary) + "\n")
        return {**result, "changed": False, **plan}

    def _note(self, plan: dict[str, Any], known: list[dict[str, Any]], serial: int, path: str) -> None:
        """Have the ledger know which hosts newly have to wait."""
        common = {"serial": serial, "rollout": plan["rollout"]}
        before = events.is_pending(known, serial)
        lines = [
            ledger.line(host, "pending", site=plan["sites"][host], reason=f"It cannot be reached: {reason}", **common)
            for host, reason in plan["pending"].items()
            if host not in before
        ]
        try:
            ledger.append(path, lines)
        except FleetError as error:  # the devices know all of it
            Display().warning(str(error))
