# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What models require of the host itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError


def required(models: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """Return what models require of the host itself: names of ``packages`` or ``kernel_modules``, or ``sysctls``.

    Raises FleetError if two models want another value of one sysctl.
    """
    needs = [(model["name"], model.get("requires", {}).get(kind, {})) for model in models]
    if kind != "sysctls":
        return sorted({name for _model, names in needs for name in names})
    sysctls: dict[str, str] = {}
    owners: dict[str, str] = {}
    for owner, values in needs:
        for key, value in values.items():
            if sysctls.setdefault(key, str(value)) != str(value):
                raise FleetError(
                    f"Two models want another value of the kernel parameter {key}",
                    where="requires.sysctls",
                    seen=f"{owners[key]}: {sysctls[key]}, {owner}: {value}",
                    remedy="agree on one value, or place the models on different hosts",
                )
            owners.setdefault(key, owner)
    return sysctls
