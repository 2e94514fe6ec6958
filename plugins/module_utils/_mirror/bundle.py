# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lock names as a directory that people carry: an OCI image layout (image specification 1.1) with the lock.

::

    oci-layout
    index.json               each manifest, named REPOSITORY@DIGEST or REPOSITORY:TAG; versions of models have tags
    blobs/sha256/<hex>       manifests and blobs, complete and verified; directories of parts where files end too early
    fleet.lock.json          the lock in its canonical form, which is what its signatures are over
    fleet.lock.json.sig
    staging/                 unfinished work, continued by the next export
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import check_space, largest_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import (
    make_directory,
    read_if_there,
    replace_file,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import MirrorContent, add_listed, resolve
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import integer, part_of
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.signatures import SignatureCopy
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    check_digest,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.parts import (
    is_intact,
    open_whole,
    remove,
    whole_size,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import referrers_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import MAX_MANIFEST, Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import IGNORED, Trust

LAYOUT, INDEX, LOCK = "oci-layout", "index.json", "fleet.lock.json"
MAX_INDEX = 16 << 20  # bytes; some 50,000 manifests
HELD_DIGITS = 16
REFERENCE = "org.opencontainers.image.ref.name"
EXPORT_AGAIN = "export it again with the playbook edgeml.fleet.bundle_export, from the same lock"


class Bundle:
    """A bundle below `root`, read as a registry is read (`Source`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)
        self.blobs = root / "blobs" / "sha256"
        self.staging = root / "staging"
        self._media_types: dict[str, str] = {}
        self._named: dict[str, str] = {}

    def blob(self, digest: str) -> Path:
        """Return where a manifest or blob is."""
        return self.blobs / digest.partition(":")[2]

    def partial(self, digest: str) -> Path:
        """Return where a blob is while it is fetched."""
        return self.staging / f"{digest.partition(':')[2]}.part"

    def open(self) -> Bundle:
        """Read the bundle's index and return the bundle; raise FleetError if there is none."""
        try:
            index = json.loads(_read_file(self.root / INDEX, MAX_INDEX))
            for entry in index["manifests"]:
                self._media_types[entry["digest"]] = entry["mediaType"]
                self._named[entry["annotations"][REFERENCE]] = check_digest(entry["digest"], str(self.root / INDEX))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise FleetError(
                "This directory is no bundle, or not a whole one",
                where=str(self.root / INDEX),
                seen=str(error),
                remedy=f"give the directory that was exported, as this host sees it; or {EXPORT_AGAIN}",
            ) from error
        return self

    def names(self) -> list[tuple[str, str]]:
        """Return repository and digest, or tag, of each manifest."""
        found = []
        for name in self._named:
            before, separator, digest = name.partition("@")
            repository, _colon, tag = name.rpartition(":")
            found.append((before, digest) if separator else (repository, tag))
        return found

    def manifests(self) -> dict[str, tuple[bytes, str]]:
        """Return each intact manifest and its media type, by digest."""
        found = {}
        for digest, media_type in self._media_types.items():
            data = self._read(digest)
            if data is not None:
                found[digest] = (data, media_type)
        return found

    def another(self, ahead: int = 0) -> Bundle:
        """Return this bundle: any number of threads may read it."""
        return self

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    # -- as a registry is read -------------------------------------------------------------------------------------

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type, by tag or digest; damaged ones raise FleetError."""
        found = self.find_manifest(repository, reference)
        if found is None:
            raise self._lacks(f"{repository} {reference}")
        return found

    def find_manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """Return what `get_manifest` returns, None if the bundle does not name it."""
        digest = self._named.get(_name(repository, reference))
        if digest is None:
            return None
        data = self._read(digest)
        if data is None:
            raise self._lacks(digest)
        return data, self._media_types[digest]

    def find_referrers(self, repository: str, digest: str) -> bytes | None:
        """Return None: what refers to a manifest is under a tag."""
        return None

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> FileBlob:
        """Start to read a blob from byte `offset`."""
        try:
            return FileBlob(self.blob(check_digest(digest, self.address)), offset)
        except OSError as error:
            raise self._lacks(digest) from error

    def read_served(self, path: str) -> bytes | None:
        """Return None: signatures are always taken from where a bundle is exported from."""
        return None

    def read_blob(self, digest: str, limit: int) -> bytes | None:
        """Return None, as `read_served` does."""
        return None

    def _read(self, digest: str) -> bytes | None:
        try:
            data = _read_file(self.blob(digest), MAX_MANIFEST)
        except (OSError, ValueError):
            return None
        return data if sha256_digest(data) == digest else None

    def _lacks(self, what: str) -> FleetError:
        return FleetError(
            "The bundle does not hold, or no longer holds whole, what the lock names",
            where=self.address,
            seen=what,
            remedy=EXPORT_AGAIN,
        )


def _read_file(path: Path, limit: int) -> bytes:
    """Return what a file holds; raise ValueError for more than `limit` bytes."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit} bytes")
    return data


class FileBlob:
    """A blob in a file, from byte `offset` on."""

    def __init__(self, path: Path, offset: int) -> None:
        self.offset = offset
        self._file = open_whole(path)
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""
        return self._file.read(size)

    def read_all(self, limit: int) -> bytes:
        """Return what is left, at most `limit` bytes."""
        return self._file.read(limit)

    def __enter__(self) -> FileBlob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def export(
    root: Path,
    store: Registry,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    *,
    write: bool,
    trust: Trust = IGNORED,
    needed: Mapping[str, Any] | None = None,
    held: Collection[str] = (),
    part_bytes: int = 0,
) -> dict[str, Any]:
    """Make `root` a bundle of exactly what `lock` names and its image indexes list, its signatures included.

    With `needed` it holds that part of the lock (see `part_of`), for `architectures` alone. Blobs in `held`, as
    `held_by` names them, are left out: the mirror that it is for has them. With either it is no backup. Blobs of more
    than `part_bytes` come in parts of that size, 0 for as large as the file system takes.

    What an earlier or interrupted export has left is read, and fetched again if it is damaged. The index is written
    last. Returns what the module content_bundle returns; without `write` nothing is changed. Raises FleetError as
    `synchronize` does.
    """
    trust.check(lock)
    bundle = Bundle(root)
    known = _left(root)
    part = lock if needed is None else part_of(lock, needed)
    whole_store = needed is None and not held
    content = resolve(known, store, part, architectures, every_platform=whole_store)
    for digest in [digest for digest in content.blobs if _short(digest) in held]:
        del content.blobs[digest]
    if trust.keys is not None:
        SignatureCopy(bundle, known, store, trust.keys.signer).add(content)
    if whole_store:
        add_listed(content, known, store)
    files, index = _manifests(content, _version_tags(part))
    files.update(content.at_hand)
    whole = {LAYOUT: canonical_json({"imageLayoutVersion": "1.0.0"}), LOCK: canonical_json(dict(lock))}
    whole[f"{LOCK}.sig"] = trust.lock_signature.encode()
    to_fetch = [
        blob
        for blob in content.blobs.values()
        if blob.digest not in files and not is_intact(bundle.blob(blob.digest), blob.digest, blob.size)
    ]
    to_write = {digest: data for digest, data in files.items() if not is_intact(bundle.blob(digest), digest, len(data))}
    stale = {name: data for name, data in {**whole, INDEX: index}.items() if read_if_there(root / name) != data}
    used = {digest.partition(":")[2] for digest in (*files, *content.blobs)}
    garbage = [path for path in bundle.blobs.glob("*") if path.name not in used]
    size = sum(blob.size for blob in to_fetch)
    if write and (to_fetch or to_write or stale or garbage):
        make_directory(bundle.blobs)
        for blob in to_fetch:
            remove(bundle.blob(blob.digest))  # a damaged one, which fetch_blob would leave if its size is right
        begun = sum(min(max(0, whole_size(bundle.partial(blob.digest))), blob.size) for blob in to_fetch)
        check_space(root, size - begun)
        limits = [limit for limit in (part_bytes, largest_file(root)) if limit]
        for blob in to_fetch:
            fetch_blob(
                store, blob.repository, blob.digest, blob.size, bundle.blob(blob.digest), bundle.partial(blob.digest),
                part_bytes=min(limits, default=0),
            )  # fmt: skip
        for digest, data in to_write.items():
            replace_file(bundle.blob(digest), data)
        for name, data in stale.items():
            replace_file(root / name, data)
        for path in garbage:
            remove(path)
        shutil.rmtree(bundle.staging, ignore_errors=True)
    return {
        "changed": bool(to_fetch or to_write or stale or garbage),
        "generation": integer(lock, "serial", "fleet.lock.yml", at_least=1),
        "blobs_fetched": len(to_fetch),
        "bytes_fetched": size,
        "bytes_total": sum(blob.size for blob in content.blobs.values()),
    }


def _left(root: Path) -> dict[str, tuple[bytes, str]]:
    """Return the intact manifests of an earlier export; an index of ours that cannot be read names none."""
    if not (root / INDEX).exists():
        return {}
    try:
        return Bundle(root).open().manifests()
    except FleetError:
        if (root / LOCK).exists():
            return {}
        raise  # a directory of somebody else


def held_by(tree: Tree) -> list[str]:
    """Return what names the blobs of a mirror, short: with some ten images and models it is about 2 kB."""
    return sorted(_short(f"sha256:{path.name}") for path in tree.cas.glob("*"))


def _short(digest: str) -> str:
    return digest.partition(":")[2][:HELD_DIGITS]


def _version_tags(lock: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return what is under the tags by which publishing sees that a version is taken, by repository and tag."""
    tags = {}
    for versions in lock["models"].values():
        for version, described in versions.items():
            for variant, entry in described["variants"].items():
                tag = version if variant == "default" else f"{version}-{variant}"
                tags[entry["repository"], tag] = entry["digest"]
                tags[entry["repository"], f"{tag}-image"] = entry["index"]
    return tags


def _manifests(content: MirrorContent, tags: Mapping[tuple[str, str], str]) -> tuple[dict[str, bytes], bytes]:
    """Return the manifests by digest, and the index that names them."""
    named = {
        **{_name(*key): (media_type, data) for key, (media_type, data) in content.manifests.items()},
        **{_name(*key): content.manifests[key[0], digest] for key, digest in tags.items()},
        **{_name(*key): (IMAGE_MANIFEST, data) for key, data in content.tagged.items()},
        **{_name(key[0], referrers_tag(key[1])): (IMAGE_INDEX, data) for key, data in content.referrers.items()},
    }
    entries = [
        descriptor(media_type, data, annotations={REFERENCE: name})
        for name, (media_type, data) in sorted(named.items())
    ]
    index = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries})
    return {sha256_digest(data): data for _media_type, data in named.values()}, index


def _name(repository: str, reference: str) -> str:
    return f"{repository}@{reference}" if ":" in reference else f"{repository}:{reference}"
