# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a mirror's tree to what a lock names, switched from one generation to the next at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import FULL_DISK, check_space, full_disk
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import resolve
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import integer
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.signatures import SignatureCopy
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob, holds
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import IGNORED, Trust


@dataclass(frozen=True)
class Summary:
    """What a synchronization did, or in check mode would do. Sizes are in bytes."""

    changed: bool
    generation: int
    generation_before: int | None
    blobs_fetched: int
    bytes_fetched: int
    blobs_total: int
    bytes_total: int
    removed_blobs: int
    before: list[str]
    after: list[str]
    """Paths of the generation's files before and after."""

    def plan(self) -> dict[str, Any]:
        """Return what changes, as RETURN of the module mirror_sync describes it."""
        return {
            "action": "sync" if self.changed else "none",
            "generation": {"before": self.generation_before, "after": self.generation},
            "blobs": self.blobs_fetched,
            "bytes": self.bytes_fetched,
            "removed_blobs": self.removed_blobs,
        }


def synchronize(
    root: Path,
    store: Source,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    keep_generations: int,
    *,
    write: bool,
    trust: Trust = IGNORED,
) -> Summary:
    """Make the tree at `root` hold what `lock` names for `architectures`, and serve nothing else.

    The store is asked only for what the tree lacks. `current` moves when everything is there; after any failure it
    leads where it led before. At most `keep_generations` generations remain, and the blobs that they refer to. Without
    `write` nothing is changed and the summary says what would be. `trust` says whose signatures count; where they do,
    they are copied too.

    Raises
    ------
    FleetError
        A lock or content that no trusted key has signed, malformed or older lock, another synchronization under way,
        full disk, whatever the store does wrong.
    """
    if keep_generations < 1:
        raise FleetError(
            "Too few generations to keep", where="keep_generations", seen=str(keep_generations), remedy="give 1 or more"
        )
    tree = Tree(root)
    try:
        with tree.locked() if write else contextlib.nullcontext():
            return _synchronize(tree, store, lock, architectures, keep_generations, write, trust)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(root, None, str(error)) from error
        raise FleetError(
            "The mirror's tree cannot be used",
            where=str(error.filename or root),
            seen=error.strerror or str(error),
            remedy="check the directory's owner, its mode and its file system",
        ) from error


def _synchronize(
    tree: Tree,
    store: Source,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    keep: int,
    write: bool,
    trust: Trust,
) -> Summary:
    trust.check(lock)
    serial = integer(lock, "serial", "fleet.lock.yml", at_least=1)
    current = tree.current_serial()
    if current is not None and serial < current and not trust.accept_older_lock:
        raise FleetError(
            "The lock is older than what the mirror serves",
            where=str(tree.current),
            seen=f"serial {serial} in the lock, {current} on the mirror",
            remedy="use the newest fleet.lock.yml; to go back, publish the older content again under a higher serial, "
            "or set edgeml_accept_older_lock: true for one run",
        )
    local = tree.manifests()
    content = resolve(local, store, lock, architectures)
    if trust.keys is not None:
        SignatureCopy(tree, local, store, trust.keys.signer).add(content)
    files = content.files()
    before = tree.read_generation()
    missing = [blob for blob in content.blobs.values() if not holds(tree.blob(blob.digest), blob.size)]
    to_fetch = sum(blob.size - tree.partial_size(blob) for blob in missing)
    switch = before != files or tree.current_target() != str(serial)
    fetched = to_fetch
    if write:
        check_space(tree.root, to_fetch)
        fetched = 0
        for blob in missing:
            if blob.digest in content.at_hand:
                tree.write_blob(blob.digest, content.at_hand[blob.digest])
                fetched += blob.size
                continue
            destination, partial = tree.blob(blob.digest), tree.partial(blob.digest)
            fetched += fetch_blob(store, blob.repository, blob.digest, blob.size, destination, partial)
        if switch:
            tree.switch(serial, files)
    generations, blobs, leftovers = tree.garbage(serial, content, keep)
    if write:
        tree.remove(generations, blobs, leftovers)
    return Summary(
        changed=bool(missing or switch or generations or blobs),
        generation=serial,
        generation_before=current,
        blobs_fetched=len(missing),
        bytes_fetched=fetched,
        blobs_total=len(content.blobs),
        bytes_total=sum(blob.size for blob in content.blobs.values()),
        removed_blobs=len(blobs),
        before=sorted(before),
        after=sorted(files),
    )
