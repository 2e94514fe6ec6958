# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the hosts that measure variants, and write what they found to the table beside the lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.ledger import now
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.plan import plan_measuring
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.results import measured_rows, still_published
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.settings import VARIABLE, read_settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import as_text, read_table, with_accuracy
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.variants import markdown, pictures, table
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.window import local_time, next_opening


class ActionModule(ActionBase):
    """All of variant_table: it runs once, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan, or what was written; see the module's RETURN."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        work = self._write if self._task.args.get("state") == "written" else self._plan
        try:
            return {**result, "changed": False, **work(variables)}
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}

    def _plan(self, variables: dict[str, Any]) -> dict[str, Any]:
        options = self._task.args
        settings = read_settings(options.get("settings"))
        left = settings.seconds_left()
        if settings.window is not None and not left:
            opens = next_opening(settings.window, local_time(settings.window))
            Display().display(f"\nNothing is measured: the window of {VARIABLE} opens at {opens:%Y-%m-%d %H:%M %Z}.\n")
            return {"hosts": {}, "seconds_left": 0}
        rows = read_table(Path(options["path"]))
        hosts = variables["ansible_play_hosts"]
        plan = plan_measuring(variables["hostvars"], hosts, options["lock"], rows, settings)
        lines = [
            f"{host} ({model['kind']}): {model['name']} {model['version']}, {', '.join(model['variants'])}"
            for host, models in plan.hosts.items()
            for model in models
        ]
        Display().display("\n" + "\n".join(["To measure:", *(lines or ["nothing"]), *plan.notes]) + "\n")
        return {
            "hosts": plan.hosts, "seconds_left": left, "samples": settings.samples, "seconds": settings.seconds,
        }  # fmt: skip

    def _write(self, variables: dict[str, Any]) -> dict[str, Any]:
        options = self._task.args
        path, lock = Path(options["path"]), options["lock"]
        asked = native(options["plan"]["hosts"])
        new, notes = measured_rows(variables["hostvars"], asked, now())
        rows = still_published([*read_table(path), *new], lock)
        shown = with_accuracy(rows, lock)
        directory = str(options.get("directory") or "")
        texts = {path: as_text(rows)} if new else {}
        changed = bool(new) and not variables.get("ansible_check_mode")
        files = write_reports(texts, "edgeml_measurements_file") if changed else []
        if directory:
            reports = {Path(directory) / "measurements.md": markdown(shown), **pictures(Path(directory), shown)}
            files += write_reports(reports, "edgeml_measure_report")
        Display().display("\n" + "\n".join([*table(shown), *notes]) + "\n")
        failed = {"failed": True, "msg": "Not all was measured: " + "; ".join(notes)} if notes else {}
        return {"changed": changed, "files": files, "rows": len(new), **failed}
