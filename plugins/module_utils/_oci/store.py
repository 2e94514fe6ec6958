# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are named by their digest only after they are complete, verified and on the disk."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import (
    FULL_DISK,
    StorageError,
    check_space,
    full_disk,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, sync_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import (
    ATTEMPTS,
    FIRST_PAUSE,
    TransientError,
    broken_off,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import check_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.parts import PartedFile, remove, whole_size
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source

READ_BLOCK = 64 << 10  # bytes; at most this much of a broken transfer is fetched twice


def fetch_blob(
    registry: Source,
    repository: str,
    digest: str,
    size: int,
    destination: Path,
    partial: Path,
    spend: Callable[[int, bool], object] = lambda size, more: None,
    part_bytes: int = 0,
) -> int:
    """Make `destination` the blob with this digest and size, and return the number of bytes transferred for it.

    Data go to `partial`, on the same file system, which a later call continues after an interruption of any kind.
    `destination` appears in one step, with the right size and digest and safe against a power cut. If it exists with
    the right size, nothing is read. Two processes must not use one `partial` at a time.

    Parameters
    ----------
    size : int
        Bytes of the whole blob.
    spend : callable
        Is told the bytes of each piece that came, and whether more are to come. What it raises ends the transfer, which
        a later call continues.
    part_bytes : int
        Makes `destination` a directory with parts of that size (`PartedFile`) where the blob is larger; 0 never does.

    Raises
    ------
    FleetError
        Unreachable registry, missing blob, wrong size or digest (`partial` is then removed), full disk.
    """
    check_digest(digest, f"a blob of {repository}")
    if holds(destination, size):
        return 0
    try:
        make_directory(destination.parent)
        make_directory(partial.parent)
        parted = 0 < part_bytes < size
        if parted != partial.is_dir():
            remove(partial)
        check_space(partial.parent, size - max(0, whole_size(partial)))
        if parted:
            with PartedFile(partial, part_bytes) as parts:
                transferred = _complete(cast("BinaryIO", parts), registry, repository, digest, size, spend)
                parts.sync()
            remove(destination)
        else:
            with partial.open("r+b" if partial.exists() else "w+b") as file:
                transferred = _complete(file, registry, repository, digest, size, spend)
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
        partial.replace(destination)
        sync_directory(destination.parent)
    except OSError as error:
        if error.errno in FULL_DISK:
            remove(partial)
            raise full_disk(partial.parent, size, str(error)) from error
        raise StorageError(
            "A blob cannot be stored",
            where=str(partial),
            seen=str(error),
            remedy="check the directory's owner, its mode and its file system",
        ) from error
    except _WrongContentError as error:
        remove(partial)
        raise FleetError(
            "A blob is not what its digest says",
            where=f"{registry.address}/{repository}@{digest}",
            seen=str(error),
            remedy="what it was read from is damaged: a mirror is healed by the playbook edgeml.fleet.mirror with "
            "-e edgeml_force=true; from a store or a bundle remove the blob, and publish or export it again",
        ) from error
    return transferred


def holds(path: Path, size: int) -> bool:
    """Return whether `path` is a file of `size` bytes, or a directory with parts of so many."""
    return whole_size(path) == size


class _WrongContentError(Exception):
    """The data have another size or digest than asked for."""


def _complete(
    file: BinaryIO, registry: Source, repository: str, digest: str, size: int, spend: Callable[[int, bool], object]
) -> int:
    """Continue `file` until it holds the blob; return the bytes transferred, raise _WrongContentError."""
    sha256 = hashlib.sha256()
    while block := file.read(READ_BLOCK):
        sha256.update(block)
    have = file.tell()
    kept = have
    if have > size or (have == size and _digest(sha256) != digest):
        kept = have = _restart(file)
        sha256 = hashlib.sha256()
    transferred = 0
    failures = 0
    furthest = have  # a source that begins anew each time gets nowhere
    while have < size:
        try:
            with registry.open_blob(repository, digest, have) as response:
                if response.offset != have:  # the registry knows no Range
                    kept = have = _restart(file)
                    sha256 = hashlib.sha256()
                while block := response.read(READ_BLOCK):
                    have += len(block)
                    if have > size:
                        raise _WrongContentError(f"more than the {size} bytes of the descriptor")
                    file.write(block)
                    sha256.update(block)
                    transferred += len(block)
                    spend(len(block), have < size)
                if have < size and getattr(response, "ends_by_close", False):
                    raise broken_off(f"{registry.address}/{repository}@{digest}", f"{size - have} bytes are missing")
                if have < size:
                    raise _WrongContentError(f"{have} bytes instead of {size}")
        except TransientError:
            failures = 0 if have > furthest else failures + 1
            furthest = max(furthest, have)
            if failures == ATTEMPTS:
                raise
            if failures:
                time.sleep(FIRST_PAUSE * 2 ** (failures - 1))
        # A power cut can leave a partial file with blocks that were never written: it, not the registry, is then bad.
        if have == size and kept and _digest(sha256) != digest:
            kept = have = furthest = _restart(file)
            sha256 = hashlib.sha256()
    if _digest(sha256) != digest:
        raise _WrongContentError(_digest(sha256))
    file.flush()
    return transferred


def _digest(sha256: hashlib._Hash) -> str:
    return "sha256:" + sha256.hexdigest()


def _restart(file: BinaryIO) -> int:
    file.seek(0)
    file.truncate()
    return 0
