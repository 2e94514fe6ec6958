# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check edgeml_rollout, and plan the waves of a rollout."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.preflight import collect, waiting
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import events
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.plan import check_canary, make_plan, table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import check_agreement, read_settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.told import told_lines
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import local_time

#: Where the playbook keeps what devices told of a run that was cut short.
_TOLD = "edgeml_rollout_told"


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
                # The slice of a job in AWX may lack them.
                if "awx_job_id" not in variables:
                    check_canary(settings.canary, variables["groups"])
                return {**result, "changed": False}
            serial, path = int(options["serial"]), str(options["ledger"])
            known = ledger.read(path)
            cut_short = events.interrupted(known, serial)
            if options.get("state") == "resumed":
                return {**result, "changed": False, "interrupted": bool(cut_short)}
            told = told_lines(hostvars, hosts, _TOLD, serial=serial, rollout=cut_short) if cut_short else []
            lines = ledger.missing(known, told)
            known = ledger.merge(known, lines)
            waits = waiting(collect(hostvars, hosts, waits=True))
            check_mode = bool(variables.get("ansible_check_mode"))
            now = local_time(settings.window) if settings.window and not check_mode else None
            progress = events.progress(known, serial)
            plan = make_plan(hostvars, hosts, variables["groups"], settings, progress, waits, now)
            lines += _news(plan, known, serial, bool(cut_short))
            if not check_mode:
                ledger.note(path, lines, Display().warning)
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(plan, settings.canary) + "\n")
        told_again = {"settings": options.get("settings"), "serial": serial, "ledger": path}
        return {**result, "changed": False, **plan, **told_again}


def _news(plan: dict[str, Any], known: list[dict[str, Any]], serial: int, cut_short: bool) -> list[dict[str, Any]]:
    """Return what the ledger lacks: hosts that newly have to wait, and the end of a rollout that nobody told."""
    common = {"serial": serial, "rollout": plan["rollout"]}
    before = events.is_pending(known, serial)
    lines = [
        ledger.line(host, "pending", site=plan["sites"][host], reason=reason, **common)
        for host, reason in plan["pending"].items()
        if host not in before
    ]
    if cut_short and not plan["order"] and not plan["elsewhere"]:
        reason = f"Rollout {plan['rollout']}: its hosts went on by themselves, {plan['done']} done"
        lines.append(ledger.line("", events.FINISHED, reason=reason, **common))
    return lines
