# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a host's certificate and the authority that signs it, in the controller's own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.certificates import PrivateAuthority, Validity

REQUIRED = ("directory", "authority", "host", "server_name", "names", "not_before", "not_after")


class ActionModule(ActionBase):
    """All of host_certificate."""

    _supports_check_mode = True
    _requires_connection = False
    _VALID_ARGS = frozenset((*REQUIRED, "client"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"changed", "msg"}."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        options = self._task.args
        missing = [name for name in REQUIRED if not options.get(name)]
        if missing:
            return {**result, "failed": True, "msg": f"missing required arguments: {', '.join(missing)}"}
        validity = Validity(str(options["not_before"]), str(options["not_after"]))
        try:
            authority = PrivateAuthority(Path(options["directory"]).expanduser(), options["authority"], validity)
            done = authority.certify(
                options["host"],
                options["server_name"],
                options["names"],
                check_mode=bool(self._task.check_mode),
                client=boolean(options.get("client", False)),
            )
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
        # What would be made is shown without -v, as `debug` shows a message.
        return {**result, **done, "_ansible_verbose_always": bool(self._task.check_mode and done["changed"])}
