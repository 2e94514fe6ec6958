# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a mirror's tree to what a lock names, switched from one generation to the next at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import (
    FULL_DISK,
    StorageError,
    check_space,
    full_disk,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import MirrorContent, resolve
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import integer, part_of
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.signatures import SignatureCopy
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sources import Sources
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.transfer import PARALLEL, Progress, transfer
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import Limits, PausedError, Uplink
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import holds
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import IGNORED, Trust

#: What a scrub may take to read one blob again, with the tree locked.
LOCK_SECONDS = 60.0


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
    bill: dict[str, Any]
    """What moving it takes, as Limits.bill says."""

    def plan(self) -> dict[str, Any]:
        """Return what changes, as RETURN of the module mirror_sync describes it."""
        return {
            "action": "sync" if self.changed else "none",
            "generation": {"before": self.generation_before, "after": self.generation},
            "blobs": self.blobs_fetched,
            "bytes": self.bytes_fetched,
            "removed_blobs": self.removed_blobs,
            "bill": self.bill,
        }


@dataclass(frozen=True)
class Course:
    """How a synchronization goes about its work.

    Attributes
    ----------
    fallbacks : sequence of Source
        Where else the same content can be read, if the store fails: a second store, the mirror of a neighbour site.
    limits : Limits
        What the uplink may be used for.
    parallel : int
        Transfers at a time.
    """

    fallbacks: Sequence[Source] = ()
    limits: Limits = field(default_factory=Limits)
    parallel: int = PARALLEL


def synchronize(
    root: Path,
    store: Source,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    keep_generations: int,
    *,
    write: bool,
    trust: Trust = IGNORED,
    needed: Mapping[str, Any] | None = None,
    in_use: Collection[str] = (),
    course: Course = Course(),  # frozen
) -> Summary:
    """Make the tree at `root` hold what `lock` names for `architectures`, and serve nothing else.

    The store is asked only for what the tree lacks. `current` moves when everything is there; after any failure it
    leads where it led before. At most `keep_generations` generations remain, those besides that alone have a digest
    that is `in_use`, and the blobs that they refer to. Without `write` nothing is changed and the summary says what
    would be. `trust` says whose signatures count; where they do, they are copied too. With `needed` (see `part_of`)
    the tree holds that part of the lock, and what of it is `in_use`.

    Raises
    ------
    FleetError
        A lock or content that no trusted key has signed, malformed or older lock, another synchronization under way,
        full disk, whatever the store does wrong. PausedError where the uplink may not be used now.
    """
    if keep_generations < 1:
        raise FleetError(
            "Too few generations to keep", where="keep_generations", seen=str(keep_generations), remedy="give 1 or more"
        )
    tree = Tree(root)
    sources = Sources([store, *course.fallbacks])
    try:
        with locked(tree, LOCK_SECONDS) if write else contextlib.nullcontext():
            return _synchronize(
                tree, sources, lock, architectures, keep_generations, write, trust, needed, in_use, course
            )
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
    sources: Sources,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    keep: int,
    write: bool,
    trust: Trust,
    needed: Mapping[str, Any] | None,
    in_use: Collection[str],
    course: Course,
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
    part = lock if needed is None else part_of(lock, needed, in_use)
    content = resolve(local, sources, part, architectures)
    if trust.keys is not None:
        SignatureCopy(tree, local, sources, trust.keys.signer).add(content)
    files = content.files()
    before = tree.read_generation()
    missing = [blob for blob in content.blobs.values() if not holds(tree.blob(blob.digest), blob.size)]
    to_fetch = sum(blob.size - tree.partial_size(blob) for blob in missing)
    switch = before != files or tree.current_target() != str(serial)
    fetched = to_fetch
    uplink = Uplink(course.limits, tree.account_file)
    bill = uplink.bill(to_fetch)
    if write:
        with _told(Progress(tree.status_file, serial, write=bool(missing))) as progress:
            _make_room(tree, content, keep, in_use, to_fetch)
            at_hand = [blob for blob in missing if blob.digest in content.at_hand]
            for blob in at_hand:
                tree.write_blob(blob.digest, content.at_hand[blob.digest])
            fetched = sum(blob.size for blob in at_hand)
            progress.begin(to_fetch - fetched)
            others = [blob for blob in missing if blob.digest not in content.at_hand]
            fetched += transfer(tree, sources, others, uplink, progress, parallel=course.parallel) if others else 0
            if switch:
                tree.switch(serial, files)
    generations, blobs, leftovers = tree.garbage(serial, content, keep, in_use)
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
        bill=bill,
    )


@contextlib.contextmanager
def locked(tree: Tree, patience: float) -> Iterator[None]:
    """Lock the tree as `Tree.locked` does, once others have let go of it, for at most `patience` seconds."""
    end = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(tree.locked())
                break
            except FleetError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.1)
        yield


def _make_room(tree: Tree, content: MirrorContent, keep: int, in_use: Collection[str], size: int) -> None:
    """Have `size` bytes free, by removing what is of no use any more if need be; raise StorageError if that fails."""
    try:
        check_space(tree.root, size)
    except StorageError:
        tree.remove(*tree.garbage(None, content, keep, in_use))
        check_space(tree.root, size)


@contextlib.contextmanager
def _told(progress: Progress) -> Iterator[Progress]:
    """Leave in the status file how it ended."""
    try:
        yield progress
    except PausedError:
        raise  # it has said so
    except FleetError as error:
        with contextlib.suppress(OSError):  # the disk may be what failed
            progress.note("failed", **error.as_mapping())
        raise
    progress.note("done")
