# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room on a host's disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

#: Error numbers that say that a disk is full.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Room that the engine needs for an image, per byte transferred: layers of Python wheels unpack to about 3 times.
UNPACK_FACTOR = 4
#: Bytes that stay free beside what is fetched.
SPARE_BYTES = 64 << 20
#: The largest file of FAT32.
FAT_FILE_BYTES = (1 << 32) - 1


class StorageError(FleetError):
    """This host's own disk failed, or is full."""


def check_space(directory: Path, needed: int) -> None:
    """Raise FleetError if the file system of `directory` has fewer than `needed` bytes free."""
    if _free(directory) < needed:
        raise full_disk(directory, needed)


def largest_file(directory: Path, mounts: Path = Path("/proc/self/mounts")) -> int:
    """Return the bytes that a file may have on the file system that `directory` is to be in, 0 for any number."""
    return FAT_FILE_BYTES if _file_system(directory, mounts) in ("vfat", "msdos") else 0


def _file_system(directory: Path, mounts: Path) -> str:
    found = {}
    for line in mounts.read_text(errors="replace").splitlines():
        _device, place, kind = line.split()[:3]
        found[place.replace("\\040", " ")] = kind
    places = map(str, (directory.absolute(), *directory.absolute().parents))
    return next((found[place] for place in places if place in found), "")


def full_disk(directory: Path, needed: int | None, seen: str = "") -> StorageError:
    """Return the error that says how many bytes are free and, if known, how many are needed."""
    figures = [seen, f"{_free(directory)} bytes free", "" if needed is None else f"{needed} bytes needed"]
    return StorageError(
        "The disk is full",
        where=str(directory),
        seen=", ".join(filter(None, figures)),
        remedy="free disk space there or use a larger disk, then run again",
    )


def _free(directory: Path) -> int:
    figures = os.statvfs(directory)
    return figures.f_bavail * figures.f_frsize
