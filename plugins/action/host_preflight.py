# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module host_preflight; a host on which it cannot run gets a finding that says why."""

from __future__ import annotations

import importlib
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    WARN,
    Finding,
    inventory_finding,
    judge,
    result_of,
)

# Ansible loads this file before it forks a worker for each host: what the filters import is then there in all of them,
# which halves the controller's work.
importlib.import_module("ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.demand")


class ActionModule(ActionBase):
    """The controller's part of host_preflight."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, or one of the same form that says why there is none."""
        super().run(tmp, task_vars)
        arguments = {"controller_time": time.time(), **self._task.args}
        try:
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            finding = unreachable(str(error))
        else:
            if "findings" in result or "Unsupported parameters" in result.get("msg", ""):
                return result
            finding = not_examined(result)
        problems = [inventory_finding(problem) for problem in arguments.get("problems") or ()]
        findings = judge([finding, *problems], arguments.get("ignore") or ())
        result = {**result_of(findings), "changed": False}
        return {**result, "failed": bool(result["msg"]) and boolean(arguments.get("refuse", True))}


def unreachable(reason: str) -> Finding:
    """Return the finding for a host that no connection reaches: what is away must not hold up the others."""
    return Finding(
        "unreachable",
        WARN,
        _line(reason),
        "a connection to the host",
        "run again when the host is back; or correct ansible_host, user and key",
    )


def not_examined(result: dict[str, Any]) -> Finding:
    """Return the finding for a host on which the module failed before it found anything."""
    seen = _line(result.get("msg") or result.get("module_stderr") or repr(result))
    if "SyntaxError" in result.get("module_stderr", ""):
        seen = "a Python too old for Ansible's modules"
    elif result.get("rc") != 127 and "interpreter" not in seen and "Python version" not in seen:
        return Finding(
            "examination",
            REFUSE,
            seen,
            "that a module can run on the host as root",
            "correct what the message names, often the become settings or the password for it",
        )
    return Finding(
        "python",
        REFUSE,
        seen,
        "Python 3.8 or newer",
        "install python3 on the host, or set ansible_python_interpreter to a newer one",
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
