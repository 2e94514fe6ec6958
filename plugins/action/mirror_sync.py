# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module mirror_sync, and show how far it is."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.plan import readable_size, readable_time

REPORT_AFTER = 10  # seconds
POLL = (5.0, 60.0)  # seconds between two looks, at first and at most: a look is a few hundred bytes
SILENT = 120.0  # seconds without news after which the module looks for itself


class ActionModule(ActionBase):
    """The controller's part of mirror_sync."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        host = (task_vars or {}).get("inventory_hostname", "")
        shows = not self._task.check_mode and not arguments.get("report_after")
        if shows:
            arguments["report_after"] = REPORT_AFTER
        while True:
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
            if not shows or not result.get("running"):
                return result
            arguments["attach"] = True
            self._follow(host, str(arguments["root"]), result["progress"])

    def _follow(self, host: str, root: str, progress: dict[str, Any]) -> None:
        """Show progress until the work ends or waits, or nothing is heard of it."""
        pause, heard = POLL[0], time.monotonic()
        while progress.get("state") == "running" and time.monotonic() - heard < SILENT:
            Display().display(f"{host}: {said(progress)}")
            time.sleep(pause)
            pause = min(pause * 1.5, POLL[1])
            command = f"cat {shlex.quote(root)}/sync/status.json"
            answer = self._low_level_execute_command(command)  # type: ignore[no-untyped-call]
            try:
                news = json.loads(answer.get("stdout") or "")
            except ValueError:
                continue
            if isinstance(news, dict) and set(news) >= set(progress) and news != progress:
                progress, heard = news, time.monotonic()


def said(progress: dict[str, Any]) -> str:
    """Return how far a synchronization is, for people."""
    text = f"{readable_size(progress['bytes_done'])} of {readable_size(progress['bytes_total'])}"
    if progress["bytes_per_second"]:
        text += f", {readable_size(progress['bytes_per_second'])}/s"
    if progress["seconds_left"] is not None:
        text += f", {readable_time(progress['seconds_left'])} left"
    return text
