# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the verification of all hosts of the play found, and write it to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.verify import collect, table, why


class ActionModule(ActionBase):
    """All of verify_report: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"totals", "failed_hosts", "files"}. What is wrong with hosts is told, and fails nothing."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        directory = str(self._task.args.get("directory", ""))
        report = collect(variables["hostvars"], variables["ansible_play_hosts_all"])
        try:
            texts = {Path(directory) / "verify.json": json.dumps(report, indent=2) + "\n"} if directory else {}
            files = write_reports(texts, "edgeml_verify_report")
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(report) + "\n")
        failed_hosts = {host["name"]: why(host) for host in report["hosts"] if not host["passed"]}
        return {**result, "changed": False, "totals": report["totals"], "failed_hosts": failed_hosts, "files": files}
