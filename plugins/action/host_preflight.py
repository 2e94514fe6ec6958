# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module host_preflight; a host on which it cannot run gets a finding that says why."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.demand import prepare, with_demand
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.role_variables import variable_problems
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.unexamined import (
    not_examined,
    result_without_module,
    unreachable,
)

# Ansible loads this file before it forks a worker for each host: what the options are made by is then there in all of
# them, which halves the controller's work.
prepare()


class ActionModule(ActionBase):
    """The controller's part of host_preflight."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, or one of the same form that says why there is none."""
        super().run(tmp, task_vars)
        arguments = {"controller_time": time.time(), **with_demand(self._task.args)}
        if set(self._task.args) - {"refuse"} and (wrong := self._wrong_variables(task_vars or {})):
            known = arguments.get("problems") or []
            arguments["problems"] = [*known, *(problem for problem in wrong if problem not in known)]
            return _judged(result_without_module(None, arguments), arguments)
        try:
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            finding = unreachable(str(error))
        except AnsibleError as error:  # of sudo's password
            finding = not_examined({"msg": str(error)})
        else:
            if "findings" in result or "Unsupported parameters" in result.get("msg", ""):
                return result
            finding = not_examined(result)
        return _judged(result_without_module(finding, arguments), arguments)

    def _wrong_variables(self, variables: dict[str, Any]) -> list[dict[str, str]]:
        """Return what is wrong with the host's variables, with which nothing can be asked of it."""
        hosts = variables.get("hostvars", {})
        name = variables.get("inventory_hostname", "")
        if name not in hosts:
            return []
        return [error.as_mapping() for error in InventoryError.of(variable_problems(hosts[name])).errors]


def _judged(result: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**result, "failed": bool(result["msg"]) and boolean(arguments.get("refuse", True))}
