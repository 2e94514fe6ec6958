# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults at any step of a synchronization, drawn by a seed, with a real registry and a disk that can lose its power.

``make test-content-faults TRIALS=500 SEED=1`` makes many trials and writes a table; ``make test`` makes a few.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import blobs_of
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.scrub import scrub
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import Summary, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.tests.integration.content.test_mirror_sync import lock_of
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    REPOSITORY_ROOT,
    Link,
    Store,
    publish_image,
)
from ansible_collections.edgeml.fleet.tests.support.failing_disk import FailingDisk

SEED = int(os.environ.get("SEED") or 1)
TRIALS = int(os.environ.get("TRIALS") or 11)
LARGE = 1_500_000
DISK_BYTES = 64 << 20
#: What a synchronization does to the file system; a fault comes with one of these calls.
CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "symlink", "fchmod", "rmdir")
REFUSED = 7  # exit status of a child whose synchronization ended with a FleetError


@dataclass
class Rig:
    """A store with two generations, and a small disk for the mirror."""

    store: Store
    disk: FailingDisk
    locks: tuple[dict[str, Any], dict[str, Any]]
    layer: str
    steps: int = 0

    @property
    def root(self) -> Path:
        return self.disk.directory / "mirror"

    def sync(self, serial: int, address: str = "", timeout: float = 60) -> Summary:
        registry = Registry(address or self.store.address, self.store.username, self.store.password, self.store.ca_file,
                            timeout)  # fmt: skip
        return synchronize(self.root, registry, self.locks[serial - 1], ARCHITECTURES, 2, write=True)

    def apart(self, at: Callable[[int], None] = lambda step: None, address: str = "") -> int:
        """Go to the second generation in a process of its own, which calls `at` before each step; return its status."""
        child = os.fork()
        if child == 0:  # nothing may get out of here
            try:
                count_steps(at)
                self.sync(2, address)
            except FleetError:
                os._exit(REFUSED)
            except BaseException:
                os._exit(99)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def restart(self) -> None:
        """Start again after a power cut."""
        self.disk.unmount()
        self.disk.mount()

    def partials(self) -> list[Path]:
        return sorted((self.root / "staging").glob("*.part"))


def count_steps(at: Callable[[int], None]) -> None:
    """Have `at` called before each call that changes the file system, with the number of those before."""
    done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            at(done)
            return call(*arguments, **options)

        return step

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def intact(rig: Rig) -> list[str]:
    """Return what is wrong with what is served."""
    current = rig.root / "current"
    if current.readlink().name not in ("1", "2"):
        return [f"current leads to {current.readlink()}"]
    wrong = []
    manifests = list(current.glob("v2/**/manifests/sha256:*"))
    if len(manifests) != 3:
        wrong.append(f"{len(manifests)} manifests")
    for path in manifests:
        data = path.read_bytes()
        if sha256_digest(data) != path.name.partition(".")[0]:
            wrong.append(f"{path.name} is damaged")
            continue
        for blob in blobs_of(json.loads(data), "", ""):
            held = rig.root / "cas/sha256" / blob.digest.removeprefix("sha256:")
            if not held.is_file() or sha256_digest(held.read_bytes()) != blob.digest:
                wrong.append(f"blob {blob.digest} is missing or damaged")
    return wrong


# -- faults: each leaves the mirror however it may, what is served intact


def killed(rig: Rig, dice: random.Random) -> None:
    step = dice.randint(1, rig.steps)
    status = rig.apart(lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)
    assert os.WIFSIGNALED(status)


def power_cut(rig: Rig, dice: random.Random) -> None:
    step = dice.randint(1, rig.steps)

    def cut(now: int) -> None:
        if now == step:
            with contextlib.suppress(OSError):
                rig.disk.fail()
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(rig.apart(cut))
    rig.restart()


def disk_full(rig: Rig, dice: random.Random) -> None:
    """From some step on nothing can be written."""
    step = dice.randint(1, rig.steps)

    def full(now: int) -> None:
        if now >= step:
            raise OSError(errno.ENOSPC, "No space left on device")

    rig.apart(full)


def link_cut(rig: Rig, dice: random.Random) -> None:
    """Each connection ends after some bytes; the run itself goes on until all is there."""
    link = Link(rig.store.address, per_connection=dice.randint(60_000, LARGE))
    try:
        summary = rig.sync(2, link.address)
        assert summary.bytes_fetched <= 1.02 * 2 * (LARGE + 500)
    finally:
        link.close()


def upstream_gone(rig: Rig, dice: random.Random) -> None:
    link = Link(rig.store.address, in_all=dice.randint(1, 2 * LARGE))
    try:
        with pytest.raises(FleetError):
            rig.sync(2, link.address)
    finally:
        link.close()


def upstream_hangs(rig: Rig, dice: random.Random) -> None:
    link = Link(rig.store.address, in_all=dice.randint(1, 2 * LARGE), silent=True)
    try:
        with pytest.raises(FleetError):
            rig.sync(2, link.address, timeout=0.2)
    finally:
        link.close()


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def bit_flip_in_staging(rig: Rig, dice: random.Random) -> None:
    link = Link(rig.store.address, in_all=dice.randint(LARGE // 2, 2 * LARGE))
    with contextlib.suppress(FleetError):
        rig.sync(2, link.address)
    link.close()
    for path in rig.partials():
        if path.stat().st_size:
            flip(path, dice)


def bit_flip_in_cas(rig: Rig, dice: random.Random) -> None:
    flip(dice.choice(sorted((rig.root / "cas/sha256").iterdir())), dice)
    assert len(scrub(rig.root, write=True)) == 1
    rig.sync(1)


def truncated_manifest_served(rig: Rig, dice: random.Random) -> None:
    path = dice.choice(sorted((rig.root / "current").glob("v2/**/manifests/*")))
    os.truncate(path, dice.randrange(path.stat().st_size))
    assert rig.sync(1).changed


def truncated_manifest_in_store(rig: Rig, dice: random.Random) -> None:
    stored = rig.store.file_of(rig.locks[1]["images"]["runtime"]["digest"])
    whole = stored.read_bytes()
    stored.write_bytes(whole[: dice.randrange(len(whole))])
    try:
        with pytest.raises(FleetError):
            rig.sync(2)
    finally:
        stored.write_bytes(whole)


def two_at_once(rig: Rig, dice: random.Random) -> None:
    link = Link(rig.store.address, per_connection=dice.randint(100_000, LARGE))
    children = []
    for address in (link.address, rig.store.address):
        child = os.fork()
        if child == 0:
            try:
                rig.sync(2, address)
            except FleetError as error:
                os._exit(REFUSED if "Another synchronization" in error.what else 98)
            except BaseException:
                os._exit(99)
            os._exit(0)
        children.append(child)
    ended = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    link.close()
    assert 0 in ended
    assert ended <= {0, REFUSED}


FAULTS = (
    killed, power_cut, disk_full, link_cut, upstream_gone, upstream_hangs, bit_flip_in_staging, bit_flip_in_cas,
    truncated_manifest_served, truncated_manifest_in_store, two_at_once,
)  # fmt: skip


@pytest.fixture(scope="module")
def rig(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("faults")
    first, second = publish_image(store, "edgeml/runtime", 20_000), publish_image(store, "edgeml/runtime", LARGE)
    locks = lock_of(1, {"runtime": first.entry}), lock_of(2, {"runtime": second.entry})
    found = Rig(store, FailingDisk(directory / "disk.img", directory / "disk"), locks, second.layers["amd64"])
    found.disk.make(DISK_BYTES)
    found.disk.mount()
    try:
        found.sync(1)
        counted = directory / "steps"

        def note(step: int) -> None:
            counted.write_text(str(step))

        assert found.apart(note) == 0
        found.steps = int(counted.read_text())
        yield found
    finally:
        found.disk.unmount()


@pytest.fixture(scope="module")
def counts() -> Iterator[Counter[tuple[str, bool]]]:
    """How many trials of each fault there were, and how many went well; the table is written from it."""
    found: Counter[tuple[str, bool]] = Counter()
    yield found
    path = REPOSITORY_ROOT / "build" / "faults" / "sync.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"| {fault.__name__.replace('_', ' ')} | {found[fault.__name__, True] + found[fault.__name__, False]} "
        f"| {found[fault.__name__, False]} |\n"
        for fault in FAULTS
    )
    path.write_text(f"Seed {SEED}.\n\n| Fault | Trials | Went wrong |\n|---|---|---|\n{rows}")


@pytest.mark.parametrize("trial", range(TRIALS))
def test_what_is_served_survives(
    rig: Rig, counts: Counter[tuple[str, bool]], trial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_failures, "FIRST_PAUSE", 0.01)
    dice = random.Random(f"{SEED} {trial}")  # noqa: S311
    fault = FAULTS[trial % len(FAULTS)]
    subprocess.run(["rm", "-rf", rig.root], check=True)
    rig.sync(1)
    counts[fault.__name__, False] += 1
    fault(rig, dice)
    assert intact(rig) == []
    rig.sync(2)  # the next run puts all right
    assert intact(rig) == []
    assert (rig.root / "current").readlink().name == "2"
    assert not rig.sync(2).changed
    assert list((rig.root / "staging").iterdir()) == []
    assert len(list((rig.root / "cas/sha256").iterdir())) == 8
    assert sorted(path.name for path in (rig.root / "generations").iterdir()) == ["1", "2"]
    counts[fault.__name__, False] -= 1
    counts[fault.__name__, True] += 1
