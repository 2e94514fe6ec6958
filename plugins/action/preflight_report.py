# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show one table of what the preflight of all hosts of the play found, and refuse if a finding does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.preflight import collect, refused, table, why_refused


class ActionModule(ActionBase):
    """All of preflight_report: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"findings", "refused"}; failed if a host is refused, unless the option `refuse` says otherwise."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = str(self._task.args.get("path", ""))
        variables = task_vars or {}
        hosts = variables["ansible_play_hosts_all"]
        findings = collect(variables["hostvars"], hosts, boolean(self._task.args.get("waits", False)))
        hosts_refused = refused(findings)
        if path:
            report = {"hosts": len(hosts), "refused": hosts_refused, "findings": findings}
            try:
                write_reports({Path(path): json.dumps(report, indent=2) + "\n"}, "edgeml_preflight_report")
            except FleetError as error:
                return {**result, "failed": True, **error.as_result()}
        if findings:
            Display().display("\n" + table(findings) + "\n")
        result = {**result, "changed": False, "findings": findings, "refused": why_refused(findings)}
        if not hosts_refused:
            return result
        message = (
            f"{len(hosts_refused)} of {len(hosts)} hosts are refused, and nothing was touched. What to do: correct "
            "what the lines with `refuse` name, leave hosts out with --limit, or go on all the same by listing those "
            "findings in edgeml_preflight_ignore."
        )
        if boolean(self._task.args.get("refuse", True)):
            return {**result, "failed": True, "msg": message}
        Display().display(message + "\n")
        return result
