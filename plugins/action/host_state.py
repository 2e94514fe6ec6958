# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module host_state: documents stay on the controller, and hosts that differ get into a group."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import filter_loader, lookup_loader
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.converged import code_digest, document_digest

# Ansible loads this file before it forks a worker for each host: what each worker would read, load and import by itself
# (40 ms of processor for each host) is there when it begins.
code_digest()
for _name in ("host_document", "host_models", "placed_models", "published_lock"):
    filter_loader.get(f"edgeml.fleet.{_name}")
for _name in ("combine", "hash"):
    filter_loader.get(f"ansible.builtin.{_name}")
lookup_loader.get("ansible.builtin.file")


class ActionModule(ActionBase):
    """The controller's part of host_state."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, see its RETURN."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state", "compared") != "compared":
            if "document" in arguments:
                arguments["document"] = document_digest(arguments["document"])
            return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
        return self._compare(arguments, task_vars or {})

    def _compare(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        if boolean(arguments.get("force", False)):
            return self._pending({"run": ["every host is asked for"]})
        try:
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:  # preflight says so, in its table
            group = str(self._task.args["group"])
            reasons = {"host": [f"it cannot be reached: {error}"]}
            return {**self._different(reasons), **self._join(f"{group}_unreached", [group])}
        if "drift" not in result:
            if re.search("Unsupported parameters|of the following are missing", result.get("msg", "")):
                return result
            return self._pending({"host": [f"it cannot be compared: {result.get('msg', result)}"]})
        changed: list[str] = []
        reasons = {section: list(lines) for section, lines in result.pop("drift").items() if lines}
        for section, variable in arguments["documents"].items():
            recorded = result["documents"].get(section)
            if recorded is None:
                continue
            try:
                document = self._document(str(variable), variables, result["ansible_facts"])
            except (AnsibleError, KeyError) as error:  # preflight names every mistake of the inventory, with its place
                reasons.setdefault(section, []).append(f"its document cannot be made: {error}")
                continue
            if document_digest(document) != recorded:
                changed.append(section)
                reasons.setdefault(section, []).append("the inventory, the lock or the collection says something else")
        result["changed_documents"] = changed
        return {**result, **(self._pending(reasons) if reasons else {"unchanged": True, "reasons": {}})}

    def _document(self, variable: str, variables: dict[str, Any], learned: dict[str, Any]) -> Any:
        """Return a variable's value as it is once the host's own facts are known."""
        facts = {**variables.get("ansible_facts", {}), **learned}
        templar = self._templar.copy_with_new_env(available_variables={**variables, "ansible_facts": facts})
        return templar.template(variables[variable])

    def _pending(self, reasons: dict[str, list[str]]) -> dict[str, Any]:
        return {**self._different(reasons), **self._join(str(self._task.args["group"]), ["all"])}

    def _different(self, reasons: dict[str, list[str]]) -> dict[str, Any]:
        return {"changed": False, "unchanged": False, "reasons": reasons}

    def _join(self, group: str, parents: list[str]) -> dict[str, Any]:
        """Put the host into a group, for the plays that follow; return the part of the result that says so."""
        if hasattr(self, "add_group"):  # from ansible-core 2.21 on, which no longer reads the result
            self.add_group(group, parent_group_names=parents)
        return {"add_group": group, "parent_groups": parents}
