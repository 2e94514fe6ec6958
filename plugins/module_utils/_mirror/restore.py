# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store made anew of a bundle: what was backed up, as it was, signatures and tags included."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import FULL_DISK
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import file_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import EXPORT_AGAIN, Bundle
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import INDEXES, Blob, blobs_of
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import digest_of, document_of, mappings
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.parts import open_whole, whole_size
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import (
    SIGNATURE_ANNOTATION,
    simple_manifest,
)


def restore(root: Path, store: Registry, *, write: bool) -> dict[str, Any]:
    """Push what the store lacks of the bundle at `root`; return what the module content_bundle returns then.

    An index follows what it lists, and a tag follows the content. What is there already is not sent, so that a run that
    was interrupted goes on; what the store has besides stays. Raises FleetError for what is damaged in the bundle,
    before anything is sent for a bundle that holds only a part, and for whatever the store does wrong.
    """
    bundle = Bundle(root).open()
    manifests = []
    for repository, reference in bundle.names():
        data, media_type = bundle.get_manifest(repository, reference)
        manifests.append((media_type in INDEXES, ":" not in reference, repository, reference, data, media_type))
    _check_complete(
        bundle, store, {(repository, reference): data for _i, _t, repository, reference, data, _m in manifests}
    )
    sent: dict[tuple[str, str], Blob] = {}
    pushed = 0
    for _is_index, is_tag, repository, reference, data, media_type in sorted(manifests):
        where = f"{root}: {repository} {reference}"
        there = store.find_manifest(repository, reference)
        config = b""
        if there and is_tag:
            data, config = _merged(reference, there[0], data, where)
        if there and there[0] == data:
            continue
        for blob in blobs_of(document_of(data, where), repository, where):
            if (repository, blob.digest) in sent or store.has_blob(repository, blob.digest):
                continue
            known = next((other for other, digest in sent if digest == blob.digest), None)
            sent[repository, blob.digest] = blob
            if config and blob.digest == sha256_digest(config):
                if write:
                    store.push_blob(repository, config, blob.digest)
            elif write and not (known and store.mount_blob(repository, blob.digest, known)):
                with _whole(bundle.blob(blob.digest), blob.size) as file:
                    _check(file, blob, bundle.blob(blob.digest))
                    store.push_blob(repository, file, blob.digest)
        if write:
            store.push_manifest(repository, reference, data, media_type)
        pushed += 1
    return {
        "changed": bool(pushed),
        "blobs_sent": len({digest for _repository, digest in sent}),
        "bytes_sent": sum({blob.digest: blob.size for blob in sent.values()}.values()),
        "manifests_sent": pushed,
    }


def _merged(reference: str, there: bytes, data: bytes, where: str) -> tuple[bytes, bytes]:
    """Return what a tag of the store stands for with what the bundle adds, and its configuration if that is new.

    Signatures of both come together, and whatever else refers to a manifest. Any other tag stays as it is.
    """
    if not reference.startswith("sha256-"):
        return there, b""
    key = "layers" if reference.endswith(".sig") else "manifests"
    document = document_of(there, where)
    before = mappings(document, key, where)
    known = [_identity(one) for one in before]
    more = [one for one in mappings(document_of(data, where), key, where) if _identity(one) not in known]
    if not more:
        return there, b""
    if key == "layers":
        return simple_manifest([*before, *more])
    return canonical_json({**document, key: [*before, *more]}), b""


def _identity(one: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what makes two descriptors the same: signatures of several keys are over one text."""
    return one.get("digest"), (one.get("annotations") or {}).get(SIGNATURE_ANNOTATION)


def _check_complete(bundle: Bundle, store: Registry, manifests: Mapping[tuple[str, str], bytes]) -> None:
    """Raise FleetError if manifests name what neither the bundle nor the store holds."""
    missing = set()
    for (repository, reference), data in manifests.items():
        where = f"{bundle.address}: {repository} {reference}"
        document = document_of(data, where)
        for child in mappings(document, "manifests", where) if "manifests" in document else ():
            key = repository, digest_of(child, "digest", where)
            if key not in manifests and not store.has_manifest(*key):
                missing.add(key)
        for blob in blobs_of(document, repository, where):
            if whole_size(bundle.blob(blob.digest)) < 0 and not store.has_blob(repository, blob.digest):
                missing.add((repository, blob.digest))
    if missing:
        raise FleetError(
            "The bundle holds only a part of what its images and models consist of, and the store lacks the rest",
            where=bundle.address,
            seen=f"{len(missing)} missing, such as {'@'.join(min(missing))}",
            remedy="export all of the lock with the playbook edgeml.fleet.bundle_export of this version, without "
            "model_store_bundle_mirror, from a store that holds it; then restore from that",
        )


@contextmanager
def _whole(path: Path, size: int) -> Iterator[Path]:
    """Give a blob as one file, which parts are put together to."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:  # not beside the parts: files end too early there
        file = Path(directory) / path.name
        try:
            with open_whole(path) as parts, file.open("wb") as target:
                shutil.copyfileobj(parts, target)
        except OSError as error:
            full = error.errno in FULL_DISK
            raise FleetError(
                "There is no room to put the parts of a blob together"
                if full
                else "The parts of a blob cannot be read",
                where=tempfile.gettempdir() if full else str(path),
                seen=f"{error.strerror or error}, {size} bytes needed",
                remedy="free disk space there, or set TMPDIR to a directory that has room" if full else EXPORT_AGAIN,
            ) from error
        yield file


def _check(path: Path, blob: Blob, told: Path) -> None:
    try:
        seen = file_digest(path)
    except OSError as error:
        seen = error.strerror or str(error)
    if seen != blob.digest:
        raise FleetError("The bundle is damaged", where=str(told), seen=seen, remedy=EXPORT_AGAIN)
