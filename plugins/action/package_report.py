# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show which packages run on which hosts, and write the bills of material to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import published_lock
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.packages import (
    images_by_host,
    packages_report,
    read_bills,
    table,
)


class ActionModule(ActionBase):
    """All of package_report: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"packages", "files"}."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, options = task_vars or {}, self._task.args
        directory, pattern = str(options.get("directory") or ""), str(options.get("package") or "*")
        try:
            bills = read_bills(published_lock(str(options["lock_file"])), options["store"], Display().warning)
            placed = images_by_host(variables["hostvars"], variables["groups"]["all"])
            packages = packages_report(bills, placed, pattern)
            texts = {f"{name}-{architecture}.cdx.json": bill.decode() for (name, architecture), bill in bills.items()}
            texts["packages.json"] = json.dumps(packages, indent=2) + "\n"
            written = {Path(directory) / name: text for name, text in texts.items()} if directory else {}
            files = write_reports(written, "edgeml_package_report")
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        Display().display("\n" + table(packages, pattern) + "\n")
        return {**result, "changed": False, "packages": packages, "files": files}
