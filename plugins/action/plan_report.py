# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what a converge would do to the hosts of the play, and write it to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.plan import collect, markdown, table


class ActionModule(ActionBase):
    """All of plan_report: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"totals", "files"}; failed if a host refuses its release."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        directory = str(self._task.args.get("directory", ""))
        try:
            report = collect(variables["hostvars"], variables["ansible_play_hosts_all"])
            files = write_reports(_texts(Path(directory), report), "edgeml_plan_report") if directory else []
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(report) + "\n")
        result |= {"changed": False, "totals": report["totals"], "files": files}
        if failed := report["totals"]["hosts"]["failed"]:
            result |= {
                "failed": True,
                "msg": f"Hosts that cannot take their release: {failed}. What to do: mend what the lines with `failed` "
                "name.",
            }
        return result


def _texts(directory: Path, report: dict[str, Any]) -> dict[Path, str]:
    return {directory / "plan.json": json.dumps(report, indent=2) + "\n", directory / "plan.md": markdown(report)}
