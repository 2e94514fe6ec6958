# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle is a backup: it holds all that a store needs, and takes nothing from a store that lives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import disk
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import export
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.restore import restore
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model, Variant
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import referrers_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import read_signatures
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import signature_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import TrustedKeys
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import manifests_of
from ansible_collections.edgeml.fleet.tests.integration.signatures.conftest import NewStore
from ansible_collections.edgeml.fleet.tests.integration.signatures.content import Signed, sign_all
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    Store,
    publish_model,
    push_image,
    run_module,
    write_model,
)
from ansible_collections.edgeml.fleet.tests.support.cosign import KeyPair, make_key


def back_up(signed: Signed, root: Path, architectures: tuple[str, ...] = ARCHITECTURES, **options: Any) -> Any:
    return export(
        root, signed.store.registry(), signed.lock, architectures, write=True, trust=signed.trust(), **options
    )


def add_platforms(store: Store, lock: dict[str, Any]) -> list[str]:
    """Have the lock's image list what nobody signed and no lock names, as copied ones do; return the digests."""
    registry, entry = store.registry(), lock["images"]["runtime"]
    repository = entry["repository"]
    index = json.loads(registry.get_manifest(repository, entry["digest"])[0])
    more = []
    for platform in ({"architecture": "arm", "os": "linux", "variant": "v7"}, {"architecture": "unknown"}):
        manifest = push_image(registry, repository, canonical_json(platform), os.urandom(1000))
        index["manifests"].append(descriptor(IMAGE_MANIFEST, manifest, platform=platform))
        more.append(sha256_digest(manifest))
    data = canonical_json(index)
    registry.push_manifest(repository, sha256_digest(data), data, IMAGE_INDEX)
    entry["digest"] = sha256_digest(data)
    return more


def test_a_backup_holds_what_its_indexes_list(signed: Signed, tmp_path: Path, new_store: NewStore) -> None:
    """Whatever the architectures of the fleet: a registry takes no index whose manifests it lacks."""
    others = add_platforms(signed.store, signed.lock)
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    back_up(signed, tmp_path / "bundle", ("amd64",))
    assert not back_up(signed, tmp_path / "bundle", ("amd64",))["changed"]
    there = new_store().registry()
    assert restore(tmp_path / "bundle", there, write=True)["changed"]
    repository = signed.lock["images"]["runtime"]["repository"]
    for name, digest in [*manifests_of(signed.lock), *((repository, digest) for digest in others)]:
        assert there.find_manifest(name, digest) == signed.store.registry().find_manifest(name, digest)
    # All that a fleet of both architectures needs can be exported from there, the bills of material included.
    whole = export(tmp_path / "second", there, signed.lock, ARCHITECTURES, write=True, trust=signed.trust())
    assert whole["changed"]
    assert (tmp_path / "second/index.json").read_bytes() == (tmp_path / "bundle/index.json").read_bytes()


@pytest.mark.parametrize("left_out", ["children", "blobs"])
def test_a_part_is_no_backup(signed: Signed, tmp_path: Path, new_store: NewStore, left_out: str) -> None:
    """Nothing is sent of a bundle for one mirror, unless the store has the rest."""
    if left_out == "children":
        back_up(signed, tmp_path / "bundle", ("amd64",), needed={"images": ["runtime"]})
    else:
        model = signed.lock["models"]["digits"]["1.0.0"]["variants"]["default"]
        back_up(signed, tmp_path / "bundle", held=[model["blob"]["digest"].partition(":")[2][:16]])
    empty = new_store()
    with pytest.raises(FleetError, match="holds only a part") as caught:
        restore(tmp_path / "bundle", empty.registry(), write=True)
    assert "model_store_bundle_mirror" in caught.value.remedy
    assert not [path for path in empty.storage.rglob("*") if path.is_file()]
    assert not restore(tmp_path / "bundle", signed.store.registry(), write=True)["changed"]


def test_versions_are_taken_after_a_restore(signed: Signed, tmp_path: Path, new_store: NewStore) -> None:
    """By the tags that publishing looks at: no version gets other content because the store was lost."""
    variant = Model(
        "digits", "1.0.0", "onnxruntime_onnx", signed.directory / "digits-1", "model.onnx", Variant("int8", "", ())
    )
    variants = signed.lock["models"]["digits"]["1.0.0"]["variants"]
    variants["int8"] = publish_model(variant, ARCHITECTURES, signed.store.registry(), "edgeml/models/digits")[1]
    sign_all(signed.store, signed.directory, signed.lock, signed.key.private)
    back_up(signed, tmp_path / "bundle")
    there = new_store()
    restore(tmp_path / "bundle", there.registry(), write=True)
    assert not restore(tmp_path / "bundle", there.registry(), write=True)["changed"]
    for tag, name in {"1.0.0": "default", "1.0.0-int8": "int8"}.items():
        for suffix, kind in {"": "digest", "-image": "index"}.items():
            found = there.registry().manifest_digest("edgeml/models/digits", f"{tag}{suffix}")
            assert found == variants[name][kind], f"{tag}{suffix}"
    options = {
        "source": str(write_model(tmp_path / "other")), "name": "digits", "version": "1.0.0",
        "repository": "edgeml/models/digits", "registry": there.options(),
    }  # fmt: skip
    assert "published with other content" in run_module("model_artifact", options, fails=True)["msg"]


def test_a_store_that_lives_keeps_what_is_newer(signed: Signed, tmp_path: Path) -> None:
    """Signatures that were made since are in the store with those of the backup; its tags stay as they are."""
    back_up(signed, tmp_path / "bundle")
    later = make_key()
    sign_all(signed.store, signed.directory, signed.lock, later.private)
    registry = signed.store.registry()
    tagged = tags_of(signed)
    assert not restore(tmp_path / "bundle", registry, write=True)["changed"]
    assert tags_of(signed) == tagged
    check_signers(signed, later)


def test_signatures_of_backup_and_store_come_together(signed: Signed, tmp_path: Path, new_store: NewStore) -> None:
    """What was published and signed again after a loss keeps that, and gets back what the backup holds."""
    back_up(signed, tmp_path / "first")
    restore(tmp_path / "first", (there := new_store()).registry(), write=True)
    later = make_key()
    signed.store = there
    for path in (there.storage / "docker/registry/v2/repositories").glob("**/_manifests/tags/*"):
        shutil.rmtree(path)
    sign_all(there, signed.directory, signed.lock, later.private)
    assert restore(tmp_path / "first", there.registry(), write=False)["changed"]
    assert restore(tmp_path / "first", there.registry(), write=True)["changed"]
    check_signers(signed, later)
    assert not restore(tmp_path / "first", there.registry(), write=True)["changed"]


def test_a_version_that_was_published_since_stays(signed: Signed, tmp_path: Path) -> None:
    back_up(signed, tmp_path / "bundle")
    registry = signed.store.registry()
    index = signed.lock["models"]["digits"]["1.0.0"]["variants"]["default"]["index"]
    data, media_type = registry.get_manifest("edgeml/models/digits", index)
    registry.push_manifest("edgeml/models/digits", "1.0.0", data, media_type)
    assert not restore(tmp_path / "bundle", registry, write=True)["changed"]
    assert registry.manifest_digest("edgeml/models/digits", "1.0.0") == index


def tags_of(signed: Signed) -> dict[str, str | None]:
    """Return what is under each tag of both kinds of signatures."""
    registry = signed.store.registry()
    found = {}
    for repository, digest in manifests_of(signed.lock):
        for tag in (signature_tag(digest), referrers_tag(digest)):
            found[f"{repository}:{tag}"] = registry.manifest_digest(repository, tag)
    return found


def check_signers(signed: Signed, later: KeyPair) -> None:
    """Fail unless both keys have signed all that the lock names, in both formats."""
    for repository, digest in manifests_of(signed.lock):
        for key in (signed.key, later):
            found = read_signatures(signed.store.registry(), repository, digest, TrustedKeys([key.public]).signer)
            assert found.simple_signers, f"{repository}@{digest}"
            assert found.bundle_signers, f"{repository}@{digest}"


@pytest.mark.parametrize("part_bytes", [0, 1000])
def test_an_export_heals_what_is_damaged(signed: Signed, tmp_path: Path, new_store: NewStore, part_bytes: int) -> None:
    """Of the same size: only its digest tells. What is whole is not written again."""
    root = tmp_path / "bundle"
    back_up(signed, root, part_bytes=part_bytes)
    model = signed.lock["models"]["digits"]["1.0.0"]["variants"]["default"]
    hexadecimal = [digest.partition(":")[2] for digest in (model["digest"], model["blob"]["digest"])]
    damaged = [root / "blobs/sha256" / name for name in hexadecimal]
    damaged = [path / "0002" if path.is_dir() else path for path in damaged]
    before = {path: path.read_bytes() for path in damaged}
    for path, data in before.items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    untouched = {path: path.stat().st_ino for path in root.rglob("*") if path.is_file() and path not in damaged}
    done = back_up(signed, root, part_bytes=part_bytes)
    assert (done["changed"], done["blobs_fetched"], done["bytes_fetched"]) == (True, 1, model["blob"]["size"])
    assert {path: path.read_bytes() for path in damaged} == before
    assert {path for path, number in untouched.items() if path.stat().st_ino != number} <= set(
        (root / "blobs/sha256" / hexadecimal[1]).glob("*")
    )
    assert not back_up(signed, root, part_bytes=part_bytes)["changed"]
    assert restore(root, new_store().registry(), write=True)["changed"]


@pytest.mark.parametrize("left", ["", '{"manifests": [{"digest": ', "[]"])
def test_an_export_heals_an_index_that_cannot_be_read(signed: Signed, tmp_path: Path, left: str) -> None:
    root = tmp_path / "bundle"
    back_up(signed, root)
    before = (root / "index.json").read_bytes()
    (root / "index.json").write_text(left)
    assert back_up(signed, root)["blobs_fetched"] == 0
    assert (root / "index.json").read_bytes() == before
    assert not back_up(signed, root)["changed"]


def test_a_directory_of_somebody_else_is_not_written(signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"pages": []}')
    with pytest.raises(FleetError, match="no bundle"):
        back_up(signed, tmp_path)
    assert not (tmp_path / "blobs").exists()


@pytest.mark.parametrize("left", ["partial", "damaged"])
def test_what_is_there_already_needs_no_room(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """An interrupted export goes on upon a disk that has just the room for the bundle."""
    root = tmp_path / "bundle"
    back_up(signed, root)
    room = used(root)
    name = signed.lock["models"]["digits"]["1.0.0"]["variants"]["default"]["blob"]["digest"].partition(":")[2]
    blob = root / "blobs/sha256" / name
    data = blob.read_bytes()
    if left == "partial":
        (root / "staging").mkdir()
        (root / "staging" / f"{name}.part").write_bytes(data[: len(data) * 3 // 4])
        blob.unlink()
    else:
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(disk, "_free", lambda _directory: room - used(root))
    assert back_up(signed, root)["blobs_fetched"] == 1
    assert blob.read_bytes() == data


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
