# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories that a power cut cannot damage, and what tells whether a disk has."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

_BLOCK = 1 << 20  # bytes


def make_directory(path: Path) -> None:
    """Make a directory and its parents, readable by all whatever the umask is, and safe against a power cut."""
    if not path.is_dir():
        make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755)
            sync_directory(path.parent)


def write_file(path: Path, data: bytes, mode: int = 0o644, owner: int | None = None) -> None:
    """Write a new file, readable by all, and wait until it is on the disk; its directory is the caller's to sync.

    `owner` is the number of its user and group.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o600), "wb") as file:
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o644, owner: int | None = None) -> None:
    """Make `path` a file with this content, readable by all, in one step that is safe against a power cut."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    write_file(temporary, data, mode, owner)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_tree(path: Path) -> None:
    """Have a directory and all below it on the disk; raise OSError."""
    for directory, _names, files in os.walk(path, topdown=False):
        for name in files:
            with (Path(directory) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(directory))


def sync_directory(path: Path) -> None:
    """Wait until the entries of a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the digest of a file's content, ``sha256:`` and hexadecimal; raise OSError if it cannot be read."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    return f"sha256:{sha256.hexdigest()}"


def read_if_there(path: Path) -> bytes | None:
    """Return what a file holds, None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
