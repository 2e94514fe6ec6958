# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of SELinux: a container may read what is mounted into it only if its files are labelled for containers."""

from __future__ import annotations

from pathlib import Path

ENFORCE = "sys/fs/selinux/enforce"


def is_on(root: Path = Path("/")) -> bool:
    """Return whether the kernel has SELinux on, enforcing or only permissive: it may enforce by the next start."""
    return (root / ENFORCE).exists()


def relabelled(volume: str, root: Path = Path("/")) -> str:
    """Return a value of ``--volume`` with the option that has the engine label the files for all containers.

    An engine that does not use SELinux leaves them alone. Where there is no SELinux the value is as it was.
    """
    if not is_on(root):
        return volume
    _source, _target, *options = volume.split(":")
    return f"{volume},z" if options else f"{volume}:z"


def mount(source: Path, target: str, *, writable: bool = False, root: Path = Path("/")) -> list[str]:
    """Return the options that mount a directory or file of the host; it has to exist."""
    if is_on(root):  # --mount knows no labels
        return ["--volume", relabelled(f"{source}:{target}:{'rw' if writable else 'ro'}", root)]
    return ["--mount", f"type=bind,source={source},target={target}" + ("" if writable else ",readonly")]
