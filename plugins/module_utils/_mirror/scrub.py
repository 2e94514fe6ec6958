# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a mirror's blobs are still what their names say: each is read anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import file_digest, sync_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import LOCK_SECONDS, locked
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree


def scrub(root: Path, *, write: bool) -> list[str]:
    """Return the digests of the blobs below a mirror's `root` that hold something else than their names say.

    With `write` they are removed: no host gets what is damaged, and the synchronization that follows fetches them.
    """
    damaged = find_damaged(root)
    return take_away(root, damaged, LOCK_SECONDS) if write else damaged


def find_damaged(root: Path) -> list[str]:
    """Return the digests of the blobs that hold something else than their names say, whoever works on the tree."""
    return [f"sha256:{path.name}" for path in sorted(Tree(root).cas.glob("*")) if not _is_intact(path)]


def take_away(root: Path, digests: Iterable[str], patience: float = 0) -> list[str]:
    """Remove those of these blobs that are damaged still, and return their digests.

    Raises FleetError if a synchronization works on the tree for longer than `patience` seconds.
    """
    tree = Tree(root)
    removed = []
    for digest in digests:
        with locked(tree, patience):
            if not _is_intact(tree.blob(digest)):
                tree.blob(digest).unlink(missing_ok=True)
                sync_directory(tree.cas)
                removed.append(digest)
    return removed


def _is_intact(path: Path) -> bool:
    try:
        return file_digest(path) == f"sha256:{path.name}"
    except FileNotFoundError:  # a synchronization has just removed it
        return True
    except OSError:  # the disk cannot read it
        return False
