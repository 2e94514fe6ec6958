# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site gets signed content from a directory on a stick, without any network."""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import Bundle, export, held_by
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.restore import restore
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import Summary, synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import IGNORED
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import manifests_of
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.signatures.conftest import NewStore
from ansible_collections.edgeml.fleet.tests.integration.signatures.content import Signed, publish, sign_all
from ansible_collections.edgeml.fleet.tests.support.content import ARCHITECTURES, run_module
from ansible_collections.edgeml.fleet.tests.support.cosign import Cosign


def empty(directory: Path) -> None:
    """Remove all that a directory holds."""
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def carry(signed: Signed, stick: Path) -> Summary:
    """Bring the mirror to what the bundle holds."""
    bundle = Bundle(stick).open()
    return synchronize(signed.mirror.root, bundle, signed.lock, ARCHITECTURES, 2, write=True, trust=signed.trust())


def write(signed: Signed, stick: Path) -> dict[str, Any]:
    return export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, write=True, trust=signed.trust())


def test_what_a_stick_brings_is_what_the_store_would_have_brought(
    signed: Signed,
    stick: Path,
    cosign: Cosign,
) -> None:
    signatures = {
        "trusted_keys": [signed.key.public],
        "lock_signature": (signed.directory / "fleet.lock.yml.sig").read_text(),
    }
    options = {"path": str(stick), "store": signed.store.options(), "lock": signed.lock, "signatures": signatures}
    predicted = run_module("content_bundle", options, check=True)
    assert not stick.exists()
    first = run_module("content_bundle", options)
    figures = ("changed", "generation", "blobs_fetched", "bytes_fetched", "bytes_total")
    assert {key: first[key] for key in figures} == {key: predicted[key] for key in figures}
    assert first["changed"]
    assert not run_module("content_bundle", options)["changed"]

    # Every file is named by its digest, and the index is that of an OCI image layout.
    for path in (stick / "blobs/sha256").iterdir():
        assert sha256_digest(path.read_bytes()) == f"sha256:{path.name}"
    assert json.loads((stick / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((stick / "fleet.lock.json").read_text()) == signed.lock
    assert sorted(path.name for path in stick.iterdir()) == [
        "blobs", "fleet.lock.json", "fleet.lock.json.sig", "index.json", "oci-layout",
    ]  # fmt: skip

    signed.sync(signed.trust())
    from_the_store = signed.mirror.snapshot()
    empty(signed.mirror.root)
    imported = {"root": str(signed.mirror.root), "bundle": str(stick), "lock": signed.lock, "signatures": signatures}
    assert run_module("mirror_sync", imported, check=True)["changed"]
    assert run_module("mirror_sync", imported)["changed"]
    assert signed.mirror.snapshot() == from_the_store
    assert not run_module("mirror_sync", imported)["changed"]
    repository, digest = next(iter(manifests_of(signed.lock)))
    assert cosign.accepts(f"{signed.mirror.address}/{repository}@{digest}", signed.key.public)


def test_only_what_is_new_is_fetched_and_carried(signed: Signed, stick: Path) -> None:
    first = write(signed, stick)
    carry(signed, stick)
    signed.lock = publish(signed.store, signed.directory, serial=2)
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    again = write(signed, stick)
    assert again["generation"] == 2
    assert 0 < again["bytes_fetched"] <= first["bytes_fetched"]
    moved = carry(signed, stick)
    assert (moved.generation_before, moved.generation) == (1, 2)
    assert not carry(signed, stick).changed


def test_nothing_is_asked_of_the_store_for_what_the_bundle_has(signed: Signed, stick: Path) -> None:
    export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, write=True)
    nobody = signed.store.registry(f"127.0.0.1:{free_port()}")
    assert not export(stick, nobody, signed.lock, ARCHITECTURES, write=True)["changed"]


def test_damage_on_the_stick_is_found_and_the_mirror_serves_on(signed: Signed, stick: Path) -> None:
    write(signed, stick)
    carry(signed, stick)
    before = signed.mirror.snapshot()
    signed.lock = publish(signed.store, signed.directory, serial=2)
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    write(signed, stick)
    blob = stick / "blobs/sha256" / blob_of(signed.lock).partition(":")[2]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(FleetError, match="not what its digest says"):
        carry(signed, stick)
    blob.unlink()
    with pytest.raises(FleetError, match="does not hold, or no longer holds whole"):
        carry(signed, stick)
    assert signed.mirror.served() == "1"
    assert before.items() <= signed.mirror.snapshot().items()
    # Exported again, it is whole.
    assert write(signed, stick)["blobs_fetched"] == 1
    assert carry(signed, stick).generation == 2


def test_content_without_signatures_is_refused(signed: Signed, stick: Path) -> None:
    """The lock is signed; whoever exported did not ask for the signatures of the content."""
    export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, write=True, trust=IGNORED)
    with pytest.raises(FleetError, match="Content is not signed"):
        carry(signed, stick)
    assert signed.mirror.served() is None


@pytest.mark.parametrize("left", ["nothing", "no index", "half an index"])
def test_what_is_no_bundle_is_named(signed: Signed, stick: Path, left: str) -> None:
    if left != "nothing":
        write(signed, stick)
        (stick / "index.json").unlink()
    if left == "half an index":
        (stick / "index.json").write_text('{"manifests": [{"digest": ')
    with pytest.raises(FleetError, match="no bundle, or not a whole one") as caught:
        carry(signed, stick)
    assert caught.value.where == str(stick / "index.json")
    assert "bundle_export" in caught.value.remedy


def blob_of(lock: dict[str, Any]) -> str:
    """Return the digest of a model's content."""
    (version,) = next(iter(lock["models"].values())).values()
    return str(version["variants"]["default"]["blob"]["digest"])


def test_a_stick_for_one_mirror_brings_what_it_lacks(signed: Signed, stick: Path) -> None:
    """By 2 kB that the mirror has told; what it has lost since is named."""
    whole = write(signed, stick)
    carry(signed, stick)
    held = held_by(Tree(signed.mirror.root))
    assert len(json.dumps(held)) < 2000
    signed.lock = {**publish(signed.store, signed.directory, serial=2), "images": signed.lock["images"]}
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    for path in stick.parent.iterdir():
        shutil.rmtree(path)
    made = export(
        stick, signed.store.registry(), signed.lock, ARCHITECTURES, write=True, trust=signed.trust(), held=held
    )
    assert 0 < made["bytes_total"] < whole["bytes_total"]
    assert carry(signed, stick).generation == 2

    for path in (signed.mirror.root / "cas/sha256").iterdir():
        if path.name[:16] in held:
            path.unlink()
    with pytest.raises(FleetError, match="does not hold, or no longer holds whole") as caught:
        carry(signed, stick)
    assert caught.value.seen.partition(":")[2][:16] in held


def test_a_store_is_restored_as_it_was(signed: Signed, stick: Path, new_store: NewStore) -> None:
    """What the lock names is backed up and goes to an empty registry: the same mirror, no byte changed."""
    write(signed, stick)
    other = new_store()
    options = {"state": "restored", "path": str(stick), "store": other.options()}
    predicted = run_module("content_bundle", options, check=True)
    done = run_module("content_bundle", options)
    figures = ("changed", "blobs_sent", "bytes_sent", "manifests_sent")
    assert {key: done[key] for key in figures} == {key: predicted[key] for key in figures}
    assert done["changed"]
    assert not run_module("content_bundle", options)["changed"]
    signed.sync(signed.trust())
    before = signed.mirror.snapshot()
    empty(signed.mirror.root)
    synchronize(signed.mirror.root, other.registry(), signed.lock, ARCHITECTURES, 2, write=True, trust=signed.trust())
    assert signed.mirror.snapshot() == before


def test_files_that_are_too_large_for_the_stick_come_in_parts(signed: Signed, stick: Path, new_store: NewStore) -> None:
    """As on FAT32, where files end at 4 GiB: the mirror and a restored store get what they would have got whole."""
    part = 1000
    options: dict[str, Any] = {"write": True, "trust": signed.trust(), "part_bytes": part}
    first = export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, **options)
    blob = stick / "blobs/sha256" / blob_of(signed.lock).partition(":")[2]
    pieces = sorted(blob.iterdir())
    assert len(pieces) > 2
    assert {path.stat().st_size for path in pieces[:-1]} == {part}
    assert sha256_digest(b"".join(path.read_bytes() for path in pieces)) == f"sha256:{blob.name}"
    assert not export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, **options)["changed"]

    # Cut in the middle of a part, with what a power cut may leave: the next export goes on.
    staging = stick / "staging" / f"{blob.name}.part"
    staging.parent.mkdir()
    shutil.move(blob, staging)
    pieces = sorted(staging.iterdir())
    pieces[-1].unlink()
    pieces[-2].write_bytes(pieces[-2].read_bytes()[: part // 2])
    again = export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, **options)
    assert (again["blobs_fetched"], staging.exists()) == (1, False)

    signed.sync(signed.trust())
    from_the_store = signed.mirror.snapshot()
    empty(signed.mirror.root)
    carry(signed, stick)
    assert signed.mirror.snapshot() == from_the_store
    other = new_store()
    assert restore(stick, other.registry(), write=True)["bytes_sent"] == first["bytes_total"]
    assert not restore(stick, other.registry(), write=False)["changed"]

    (blob / "0002").write_bytes(b"damaged")
    with pytest.raises(FleetError, match="damaged"):
        restore(stick, new_store().registry(), write=True)
    signed.lock = publish(signed.store, signed.directory, serial=2)
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, **{**options, "trust": signed.trust()})
    assert not blob.exists()
    assert carry(signed, stick).generation == 2


def test_a_damaged_backup_is_refused(signed: Signed, stick: Path, new_store: NewStore) -> None:
    write(signed, stick)
    (stick / "blobs/sha256" / blob_of(signed.lock).partition(":")[2]).write_bytes(b"damaged")
    with pytest.raises(FleetError, match="The bundle is damaged"):
        restore(stick, new_store().registry(), write=True)


def test_a_full_disk_is_named_where_parts_come_together(
    signed: Signed, stick: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export(stick, signed.store.registry(), signed.lock, ARCHITECTURES, write=True, part_bytes=5000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = new_store().registry()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(FleetError, match="no room") as caught:
            restore(stick, there, write=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.where == str(tmp_path)
    assert "TMPDIR" in caught.value.remedy
    assert restore(stick, there, write=True)["changed"]
