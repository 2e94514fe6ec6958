# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that a host's models come to, in one piece, by which a converge is compared with the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.releases import host_releases
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.requirements import required


def host_document(
    models: Sequence[Mapping[str, Any]],
    lock: dict[str, Any],
    runtimes: Sequence[Mapping[str, Any]] | None,
    architecture: str,
    host: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return releases, packages, kernel_modules and sysctls of a host; the arguments are those of host_releases."""
    models = list(models)
    return {
        "releases": host_releases(models, lock, runtimes, architecture, host, settings),
        "packages": required(models, "packages"),
        "kernel_modules": required(models, "kernel_modules"),
        "sysctls": required(models, "sysctls"),
    }
