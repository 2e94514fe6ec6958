# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names on a host: of its machine, of a runtime's container and directory, and of the user that serves."""

from __future__ import annotations

from pathlib import PurePath
from typing import TypeVar

#: Names of machines (``uname -m``) as OCI names them.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

#: User and group, by number, under which the collection's own images run.
SERVICE_USER = 65532

#: The runtime that has the host's root and the plain name for itself; others are below ``runtimes/``.
DEFAULT_RUNTIME = "runtime"

AnyPath = TypeVar("AnyPath", bound=PurePath)


def container_name(runtime: str) -> str:
    """Return the name of the container that serves `runtime`."""
    return "edgeml-runtime" if runtime == DEFAULT_RUNTIME else f"edgeml-runtime-{runtime}"


def runtime_root(host_root: AnyPath, runtime: str) -> AnyPath:
    """Return the directory that `runtime` has below `host_root` (``/var/lib/edgeml``)."""
    return host_root if runtime == DEFAULT_RUNTIME else host_root / "runtimes" / runtime


def is_cdi_name(device: str) -> bool:
    """Return whether a device is a name of the Container Device Interface (``nvidia.com/gpu=0``), and no path."""
    return not device.startswith("/") and "=" in device
