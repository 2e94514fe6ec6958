# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign a lock and what it names, in the controller's own process: the key is written nowhere."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import sign


class ActionModule(ActionBase):
    """All of lock_signature."""

    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False
    _VALID_ARGS = frozenset(("lock", "path", "key", "passphrase", "registry", "trusted_keys"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"changed", "key", "public_key", "signers", "signed", "diff"}."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        options = self._task.args
        missing = [name for name in ("lock", "path", "key") if not options.get(name)]
        if missing:
            return {**result, "failed": True, "msg": f"missing required arguments: {', '.join(missing)}"}
        try:
            return {**result, **sign(options, check_mode=bool(self._task.check_mode), warn=Display().warning)}
        except FleetError as error:
            return {**result, "failed": True, **error.as_result()}
