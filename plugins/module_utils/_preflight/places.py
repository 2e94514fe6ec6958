# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the directories that a host is to be written to: on a disk, writable, and short enough for sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import runtime_root
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import REFUSE, Finding, Host, Wanted

#: What is longest below a runtime's root of what has to be the name of a socket (sun_path of unix(7), without its NUL).
LONGEST_SOCKET = "run/a/metrics.sock"
SOCKET_PATH_BYTES = 107
STATE = "/var/lib/edgeml"  # of records that are the same wherever models are kept


def directories(host: Host, wanted: Wanted) -> Iterator[Finding]:
    """Where models and state are kept: on a disk, and by a path that a socket below it can have."""
    for runtime in wanted.memory_mb if wanted.serves_models else ():
        longest = f"{runtime_root(PurePosixPath(wanted.root), runtime)}/{LONGEST_SOCKET}"
        if len(longest.encode()) > SOCKET_PATH_BYTES:
            yield Finding(
                "directory",
                REFUSE,
                f"sockets of runtime {runtime} have a path of {len(longest.encode())} bytes below {wanted.root}",
                f"{SOCKET_PATH_BYTES} at most, as the kernel allows for a socket",
                "choose a shorter inference_runtime_directory",
            )
    roots = {
        content.kind: wanted.mirror_root if content.kind == "mirrored" else wanted.root for content in wanted.content
    }
    for root in sorted(set(roots.values())):
        kind = _kind_in_memory(host, root)
        if kind:
            yield Finding(
                "directory_in_memory",
                REFUSE,
                f"{root} is on {kind}",
                "a disk: what is in memory is gone when the power is",
                "mount a disk there, or choose another directory; directory_in_memory in edgeml_preflight_ignore "
                "accepts it",
            )


def _kind_in_memory(host: Host, place: str) -> str:
    """Return the kind of the file system that holds `place` if it is in memory, an overlay on such a one included."""
    _target, kind, options = _mount(host, place)
    if kind in ("tmpfs", "ramfs"):
        return kind
    upper = re.search(r"(?:^|,)upperdir=([^,]+)", options) if kind == "overlay" else None
    # Of the upper directory of a container's root nothing is known in the container.
    below = _kind_in_memory(host, upper[1]) if upper and host.path(upper[1]).exists() else ""
    return f"overlay on {below}" if below else ""


def read_only(host: Host, wanted: Wanted) -> Iterator[Finding]:
    """Where a converge writes, and cannot."""
    for place, other, why in _written(host, wanted):
        target, kind, options = _mount(host, place)
        if "ro" in options.split(","):
            yield Finding(
                "read_only",
                REFUSE,
                f"{place} is on {target} ({kind}), which is mounted read-only",
                f"that it can be written to, for {why}",
                f"{other}mount a writable file system there, or at a directory above it; read_only in "
                "edgeml_preflight_ignore accepts it, where the system's image brings what would be written",
            )


def _written(host: Host, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    """Return each place that is written to, what there is to do instead of mounting something there, and what for."""
    for variable, directory in wanted.directories.items():
        yield directory, f"set {variable} to a directory on a writable disk; or ", "data or secrets"
    if not wanted.content:
        return
    yield STATE, "", "what is known of this host"
    if wanted.registry is not None:
        yield "/etc/docker", "", "the registry's authority, which the engine reads there alone"
        if wanted.registry.ip_address:
            variable = "edgeml_mirror_ip_address" if wanted.serves_models else "edgeml_store_ip_address"
            other = f"let a name service know {wanted.registry.address}, and leave {variable} empty; or "
            yield "/etc/hosts", other, "the registry's name"
    if wanted.serves_models and host.path("/run/systemd/system").is_dir():
        yield "/etc/systemd/system", "", "the timer that watches a release"
    if wanted.requires.sysctls:
        yield "/etc/sysctl.d", "", "requires.sysctls of a model"
    if wanted.requires.kernel_modules:
        yield "/etc/modules-load.d", "", "requires.kernel_modules of a model"


def _mount(host: Host, place: str) -> tuple[str, str, str]:
    """Return mount point, kind and options of the file system that holds a place; empty if nothing is known."""
    mounts = [line.split() for line in host.text("/proc/mounts").splitlines()]
    holding = [fields for fields in mounts if len(fields) > 3 and _is_below(place, fields[1])]
    # What was mounted last lies above.
    found = max(reversed(holding), key=lambda fields: len(fields[1]), default=["", "", "", ""])
    return found[1], found[2], found[3]


def _is_below(place: str, target: str) -> bool:
    return target == "/" or place == target or place.startswith(target.rstrip("/") + "/")
