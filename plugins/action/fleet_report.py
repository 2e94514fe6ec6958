# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the fleet is now, and write it as a page, JSON and files for Prometheus and Grafana."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet_files import fleet_texts
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.summary import table


class ActionModule(ActionBase):
    """All of fleet_report: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"totals", "files"}. What is wrong with hosts is told, and fails nothing."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, options = task_vars or {}, self._task.args
        directory = str(options.get("directory", ""))
        try:
            report = collect(
                variables["hostvars"],
                variables["ansible_play_hosts_all"],
                str(options.get("fleet", "")),
                _read(str(options.get("ledger", ""))),
            )
            files = write_reports(fleet_texts(directory, report), "edgeml_report") if directory else []
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(report) + "\n")
        return {**result, "changed": False, "totals": report["totals"], "files": files}


def _read(path: str) -> list[dict[str, Any]]:
    """Return the lines of the ledger. One that cannot be read is a warning: the hosts are asked anyway."""
    try:
        return ledger.read(path) if path else []
    except FleetError as error:
        Display().warning(str(error))
        return []
