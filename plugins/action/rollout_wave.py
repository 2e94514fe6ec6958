# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin a wave of a rollout, judge it, watch it, and sum all waves up."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.course import Course
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import read_settings


class ActionModule(ActionBase):
    """All of rollout_wave: it runs once for each step of a wave, on the controller."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the step found, see the module's RETURN."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, options = task_vars or {}, self._task.args
        hostvars, check_mode = variables["hostvars"], bool(variables.get("ansible_check_mode"))
        try:
            plan = options["plan"]
            settings = read_settings(plan["settings"])
            course = Course(plan, settings, int(plan["serial"]), hostvars, check_mode)
            step = str(options["step"])
            if step == "summed_up":
                found = course.sum_up()
            elif step == "went_back":
                found = course.went_back(options["hosts"])
            else:
                wave = course.wave(variables["inventory_hostname"])
                found = {
                    "opened": lambda: course.open(wave, _prompt),
                    "judged": lambda: course.judge(wave),
                    "watched": lambda: course.judge(wave, watched=True),
                }[step]()
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        if found.text:
            Display().display("\n" + found.text + "\n")
        if not check_mode:
            ledger.note(str(plan["ledger"]), found.lines, Display().warning)
            time.sleep(found.pause)
        return {**result, "changed": False, **found.result}


def _prompt(question: str) -> str:
    """Ask the person at the terminal."""
    try:
        answer: bytes = Display().prompt_until(question)
    except AnsiblePromptNoninteractive:
        return (
            "nobody, since this run has no terminal; edgeml_rollout.approval may be {file: PATH} or {url: https://...}"
        )
    except AnsiblePromptInterrupt:
        return "interrupted"
    return answer.decode("utf-8", "replace").strip()
