# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a mirror's blobs are still what their names say: each is read anew."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import file_digest, sync_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree


def scrub(root: Path, *, write: bool) -> list[str]:
    """Return the digests of the blobs below a mirror's `root` that hold something else than their names say.

    With `write` they are removed: no host gets what is damaged, and the synchronization that follows fetches them.
    """
    tree = Tree(root)
    damaged = [path for path in sorted(tree.cas.glob("*")) if not _is_intact(path)]
    if write and damaged:
        with tree.locked():
            for path in damaged:
                path.unlink(missing_ok=True)
            sync_directory(tree.cas)
    return [f"sha256:{path.name}" for path in damaged]


def _is_intact(path: Path) -> bool:
    try:
        return file_digest(path) == f"sha256:{path.name}"
    except FileNotFoundError:  # a synchronization has just removed it
        return True
    except OSError:  # the disk cannot read it
        return False
