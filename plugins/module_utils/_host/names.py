# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a runtime's container and directory on a host are called."""

from __future__ import annotations

from pathlib import PurePath
from typing import TypeVar

#: The runtime that has the host's root and the plain name for itself; others are below ``runtimes/``.
DEFAULT_RUNTIME = "runtime"

AnyPath = TypeVar("AnyPath", bound=PurePath)


def container_name(runtime: str) -> str:
    """Return the name of the container that serves `runtime`."""
    return "edgeml-runtime" if runtime == DEFAULT_RUNTIME else f"edgeml-runtime-{runtime}"


def runtime_root(host_root: AnyPath, runtime: str) -> AnyPath:
    """Return the directory that `runtime` has below `host_root` (``/var/lib/edgeml``)."""
    return host_root if runtime == DEFAULT_RUNTIME else host_root / "runtimes" / runtime
