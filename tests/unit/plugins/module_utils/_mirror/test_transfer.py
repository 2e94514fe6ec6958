# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several transfers at a time, sources that fail, pauses, progress, and what goes when the disk is full."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import disk
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import StorageError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import Blob, MirrorContent
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sources import Sources
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import Course, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.transfer import PARALLEL, Progress, transfer
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import Limits, PausedError, Uplink
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import READ_BLOCK
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._mirror.test_sync import image, lock_of

Serve = Callable[[Callable[[Request], Answer]], Server]
BLOBS = {sha256_digest(data): data for data in (os.urandom(size) for size in (200_000, 150_000, 100_000, 1000, 7))}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_failures, "FIRST_PAUSE", 0.01)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    found = Tree(tmp_path / "mirror")
    with found.locked():
        return found


def ranged(content: dict[str, bytes]) -> Callable[[Request], Answer]:
    """Answer like a registry that knows Range."""

    def answer(request: Request) -> Answer:
        data = content.get(request.path.rpartition("/")[2])
        if data is None:
            return Answer(404)
        offset = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if offset else {}
        return Answer(206 if offset else 200, data[offset:], headers)

    return answer


def blobs_of(content: dict[str, bytes]) -> list[Blob]:
    return [Blob("edgeml/a", digest, len(data)) for digest, data in content.items()]


def held(tree: Tree) -> dict[str, bytes]:
    return {f"sha256:{path.name}": path.read_bytes() for path in tree.cas.iterdir()}


def test_blobs_come_side_by_side(serve: Serve, tree: Tree) -> None:
    """Four requests are under way before any is answered."""
    together = threading.Barrier(4, timeout=60)
    large = dict(list(BLOBS.items())[:4])

    def answer(request: Request) -> Answer:
        together.wait()
        return ranged(large)(request)

    sources = Sources([serve(answer).registry()])
    progress = Progress(tree.status_file, 1)
    assert transfer(tree, sources, blobs_of(large), Uplink(Limits(), tree.account_file), progress) == sum(
        map(len, large.values())
    )
    assert held(tree) == large


def test_the_next_source_goes_on_where_one_failed(serve: Serve, tree: Tree) -> None:
    """The store cuts each connection, then is gone; the neighbour sends the rest and no byte twice."""
    (digest, data), *_ = BLOBS.items()
    broken = serve(lambda request: Answer(200, data, cut=70_000) if "Range" not in request.headers else Answer(503))
    neighbour = serve(ranged(BLOBS))
    sources = Sources([broken.registry(), neighbour.registry()])
    progress = Progress(tree.status_file, 1)
    came = transfer(tree, sources, blobs_of({digest: data}), Uplink(Limits(), tree.account_file), progress)
    assert held(tree) == {digest: data}
    assert came == len(data)
    (asked,) = neighbour.requests
    assert int(asked.headers["Range"][6:-1]) > 60_000


def test_a_source_with_wrong_content_is_passed_over(serve: Serve, tree: Tree) -> None:
    (digest, data), *_ = BLOBS.items()
    sources = Sources([serve(lambda _: Answer(200, data[::-1])).registry(), serve(ranged(BLOBS)).registry()])
    progress = Progress(tree.status_file, 1)
    transfer(tree, sources, blobs_of({digest: data}), Uplink(Limits(), tree.account_file), progress)
    assert held(tree) == {digest: data}


def test_what_no_source_has_is_the_first_ones_failure(serve: Serve, tree: Tree) -> None:
    store, neighbour = serve(lambda _: Answer(500)), serve(lambda _: Answer(404))
    with pytest.raises(FleetError, match="failed to answer") as failed:
        Sources([store.registry(), neighbour.registry()]).get_manifest("edgeml/a", next(iter(BLOBS)))
    assert store.address in failed.value.where


def test_a_source_that_cannot_be_reached_is_asked_last(serve: Serve, tree: Tree) -> None:
    neighbour = serve(ranged(BLOBS))
    asked: list[str] = []

    class Gone(Registry):
        def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
            asked.append(reference)
            raise _failures.UnreachableError("The registry cannot be reached")

    gone = Gone("store.example:5000")
    sources = Sources([gone, neighbour.registry()])
    for digest in BLOBS:
        sources.get_manifest("edgeml/a", digest)
    assert len(asked) == 1


def test_a_pause_ends_all_transfers_and_goes_on_where_they_were(serve: Serve, tree: Tree) -> None:
    """Nothing comes twice, and the status file says what is waited for.

    Each transfer ends its block when the day's bytes are used up: which day is the last depends on how they take turns.
    """
    moments = [datetime(2026, 3, 2, 12)]
    total = sum(map(len, BLOBS.values()))
    limits = Limits(bytes_per_day=total // 3 + 1)
    progress = Progress(tree.status_file, 7)
    progress.begin(total)
    waits: list[dict[str, str]] = []
    sources = Sources([serve(ranged(BLOBS)).registry()])
    while held(tree) != BLOBS:
        uplink = Uplink(limits, tree.account_file, now=lambda: moments[-1])
        try:
            came = transfer(tree, sources, blobs_of(BLOBS), uplink, progress)
        except PausedError as pause:
            waits.append(json.loads(tree.status_file.read_text()))
            moments.append(pause.until)
    assert came == total
    assert waits
    assert {wait["state"] for wait in waits} == {"waiting"}
    assert waits[0]["why"] == "the day's bytes are used up"
    assert waits[0]["until"] in ("2026-03-03T00:00", "2026-03-04T00:00")
    assert datetime(2026, 3, 3) <= moments[-1] < datetime(2026, 3, 6)
    assert uplink.left is not None
    assert -PARALLEL * READ_BLOCK <= uplink.left < limits.bytes_per_day


def test_a_pause_says_when_it_goes_on(serve: Serve, tree: Tree) -> None:
    uplink = Uplink(Limits(bytes_per_day=1), tree.account_file, now=lambda: datetime(2026, 3, 2, 12))
    sources = Sources([serve(ranged(BLOBS)).registry()])
    with pytest.raises(PausedError, match="goes on at"):
        transfer(tree, sources, blobs_of(BLOBS), uplink, Progress(tree.status_file, 7))
    assert json.loads(tree.status_file.read_text())["state"] == "waiting"


def test_progress_is_bytes_rate_and_time_left(tmp_path: Path) -> None:
    seconds = [0.0]
    progress = Progress(tmp_path / "sync" / "status.json", 3, clock=lambda: seconds[0])
    progress.begin(1_000_000)
    for _ in range(10):
        seconds[0] += 2
        progress.add(50_000)
    status = json.loads((tmp_path / "sync" / "status.json").read_text())
    del status["time"]
    assert status == {
        "state": "running",
        "serial": 3,
        "bytes_done": 500_000,
        "bytes_total": 1_000_000,
        "bytes_per_second": 25_000,
        "seconds_left": 20,
    }


# -- what is kept, and what goes ---------------------------------------------------------------------------------------


def sync(server: Server, root: Path, serial: int, entry: dict[str, object], in_use: tuple[str, ...] = ()) -> None:
    synchronize(root, server.registry(), lock_of(serial, entry), ["amd64"], 2, write=True, in_use=in_use)


def test_what_a_host_uses_is_never_removed(serve: Serve, tmp_path: Path) -> None:
    """A host that was away still runs the first release: its generation stays beside the kept ones."""
    images = [image(text) for text in "abcd"]
    content = {digest: data for one, _entry in images for digest, data in one.items()}
    server = serve(ranged(content))
    used = images[0][1]["platforms"]["amd64"]["digest"]
    for serial, (_content, entry) in enumerate(images, start=1):
        sync(server, tmp_path, serial, entry, (used,))
    assert sorted(path.name for path in (tmp_path / "generations").iterdir()) == ["1", "3", "4"]
    names = {path.name for path in (tmp_path / "cas" / "sha256").iterdir()}
    assert sha256_digest(b"a").partition(":")[2] in names
    assert sha256_digest(b"b").partition(":")[2] not in names
    sync(server, tmp_path, 4, images[3][1])  # the host has moved on
    assert sorted(path.name for path in (tmp_path / "generations").iterdir()) == ["3", "4"]


def test_only_what_is_needed_or_used_is_copied(serve: Serve, tmp_path: Path) -> None:
    placed, used, other = image("placed"), image("used"), image("other")
    lock = {"serial": 1, "images": {"placed": placed[1], "used": used[1], "other": other[1]}, "models": {}}
    synchronize(
        tmp_path,
        serve(ranged({**placed[0], **used[0], **other[0]})).registry(),
        lock,
        ["amd64"],
        2,
        write=True,
        needed={"images": ["placed"], "models": {}},
        in_use=[used[1]["platforms"]["amd64"]["digest"]],
    )
    names = {path.name for path in (tmp_path / "cas" / "sha256").iterdir()}
    assert {sha256_digest(text).partition(":")[2] in names for text in (b"placed", b"used")} == {True}
    assert sha256_digest(b"other").partition(":")[2] not in names


@pytest.mark.parametrize(
    "needed",
    [{"images": ["none"]}, {"models": {"digits": {"1.0.0": []}}}],
)
def test_a_need_that_the_lock_does_not_have_is_refused(serve: Serve, tmp_path: Path, needed: dict[str, object]) -> None:
    content, entry = image("a")
    with pytest.raises(FleetError, match="does not have what the site needs"):
        synchronize(
            tmp_path, serve(ranged(content)).registry(), lock_of(1, entry), ["amd64"], 2, write=True, needed=needed
        )


def test_a_full_disk_takes_old_garbage_first(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served, and what was begun, stays; the generation before goes; then it fits."""
    images = [image(text) for text in "abc"]
    content = {digest: data for one, _entry in images for digest, data in one.items()}
    server = serve(ranged(content))
    for serial, (_content, entry) in enumerate(images[:2], start=1):
        sync(server, tmp_path, serial, entry)
    cas = tmp_path / "cas" / "sha256"
    (tmp_path / "staging" / f"{64 * 'e'}.part").write_bytes(b"begun long ago")
    before = {path.name for path in cas.iterdir()}
    told: list[set[str]] = []

    def free(_directory: Path) -> int:
        told.append({path.name for path in cas.iterdir()})
        return 10**9 if told[-1] != before else 0

    monkeypatch.setattr(disk, "_free", free)
    sync(server, tmp_path, 3, images[2][1])
    assert sha256_digest(b"b").partition(":")[2] in told[-1]
    assert sha256_digest(b"a").partition(":")[2] not in told[-1]
    assert sorted(path.name for path in (tmp_path / "generations").iterdir()) == ["2", "3"]


def test_a_disk_that_stays_full_is_refused_with_what_is_served_intact(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = image("a"), image("b")
    server = serve(ranged({**first[0], **second[0]}))
    sync(server, tmp_path, 1, first[1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "sync" not in path.parts}
    monkeypatch.setattr(disk, "_free", lambda _directory: 0)
    with pytest.raises(StorageError, match=r"The disk is full.*bytes needed"):
        sync(server, tmp_path, 2, second[1])
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "sync" not in path.parts}
    assert after == before
    assert json.loads((tmp_path / "sync" / "status.json").read_text())["what"] == "The disk is full"


def test_what_is_served_is_no_garbage_though_it_is_damaged(tree: Tree) -> None:
    manifests = tree.generations / "1" / "v2" / "edgeml" / "a" / "manifests"
    manifests.mkdir(parents=True)
    (manifests / f"sha256:{64 * '0'}.oci-manifest").write_text("damaged")
    tree.current.symlink_to("generations/1")
    tree.blob(f"sha256:{64 * '1'}").write_text("whose is it")
    assert tree.garbage(None, MirrorContent(), 2) == ([], [], [])


def test_the_generation_before_is_kept_whatever_its_serial_is(tree: Tree) -> None:
    """Serials begin anew with a lock that was lost, and a lock may go back."""
    kept = []
    for serial in (6, 7, 1, 2, 3, 2):
        tree.switch(serial, {})
        tree.remove(*tree.garbage(serial, MirrorContent(), 2))
        kept.append(sorted(path.name for path in tree.generations.iterdir()))
    assert kept == [["6"], ["6", "7"], ["1", "7"], ["1", "2"], ["2", "3"], ["2", "3"]]


def test_an_unchanged_mirror_asks_nothing(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    server = serve(ranged(content))
    sync(server, tmp_path, 1, entry)
    asked = len(server.requests)
    sync(server, tmp_path, 1, entry)
    assert len(server.requests) == asked


def test_limits_reach_the_transfers(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    course = Course(limits=Limits(bytes_per_day=1), parallel=1)
    with pytest.raises(PausedError):
        synchronize(
            tmp_path, serve(ranged(content)).registry(), lock_of(1, entry), ["amd64"], 2, write=True, course=course
        )
    assert not (tmp_path / "current").exists()
