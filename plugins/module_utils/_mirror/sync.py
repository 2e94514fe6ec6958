# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content tree of a site mirror: exactly what a lock names, switched from one generation to the next at once.

The tree, which a web server delivers as a read-only registry::

    cas/sha256/<hex>                                                       blobs, complete and verified
    staging/                                                               unfinished work, continued by the next run
    generations/<serial>/v2/<repository>/manifests/<digest>.oci-manifest   or another of EXTENSIONS
    generations/<serial>/v2/<repository>/tags/list
    current -> generations/<serial>
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import FULL_DISK, check_space, full_disk
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, sync_directory, write_file
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    check_digest,
    check_repository,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob, holds

EXTENSIONS = {
    IMAGE_INDEX: "oci-index",
    IMAGE_MANIFEST: "oci-manifest",
    DOCKER_INDEX: "docker-index",
    DOCKER_MANIFEST: "docker-manifest",
}
INDEXES = (IMAGE_INDEX, DOCKER_INDEX)
MANIFESTS = (IMAGE_MANIFEST, DOCKER_MANIFEST)


@dataclass(frozen=True)
class Blob:
    """A blob that the mirror must hold; `repository` is one that has it in the store."""

    repository: str
    digest: str
    size: int


@dataclass
class Content:
    """What a lock asks a mirror to hold."""

    blobs: dict[str, Blob] = field(default_factory=dict)  # by digest
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """By repository and digest: media type and bytes."""

    def files(self) -> dict[str, bytes]:
        """Return the files of the generation, by their path in it."""
        files = {
            f"v2/{repository}/manifests/{digest}.{EXTENSIONS[media_type]}": data
            for (repository, digest), (media_type, data) in self.manifests.items()
        }
        for repository, _ in self.manifests:
            files[f"v2/{repository}/tags/list"] = canonical_json({"name": repository, "tags": []})
        return files


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
    store: Registry,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    keep_generations: int,
    *,
    write: bool,
) -> Summary:
    """Make the tree at `root` hold what `lock` names for `architectures`, and serve nothing else.

    The store is asked only for what the tree lacks. `current` moves when everything is there; after any failure it
    leads where it led before. At most `keep_generations` generations remain, and the blobs that they refer to. Without
    `write` nothing is changed and the summary says what would be.

    Raises
    ------
    FleetError
        Malformed or older lock, another synchronization under way, full disk, whatever the store does wrong.
    """
    if keep_generations < 1:
        raise FleetError(
            "Too few generations to keep", where="keep_generations", seen=str(keep_generations), remedy="give 1 or more"
        )
    tree = _Tree(root)
    try:
        with tree.locked() if write else contextlib.nullcontext():
            return _synchronize(tree, store, lock, architectures, keep_generations, write)
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
    tree: _Tree, store: Registry, lock: Mapping[str, Any], architectures: Sequence[str], keep: int, write: bool
) -> Summary:
    serial = _integer(lock, "serial", "fleet.lock.yml", at_least=1)
    current = tree.current_serial()
    if current is not None and serial < current:
        raise FleetError(
            "The lock is older than what the mirror serves",
            where=str(tree.current),
            seen=f"serial {serial} in the lock, {current} on the mirror",
            remedy="use the newest fleet.lock.yml; to go back, publish the older content again under a higher serial",
        )
    content = _resolve(tree, store, lock, architectures)
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


def _resolve(tree: _Tree, store: Registry, lock: Mapping[str, Any], architectures: Sequence[str]) -> Content:
    """Return what the lock names, reading each manifest from the tree if it is there, else from the store."""
    content = Content()
    local = tree.manifests()

    def manifest(repository: str, digest: str, allowed: Sequence[str]) -> dict[str, Any]:
        data, media_type = local.get(digest) or store.get_manifest(repository, digest)
        where = f"{store.address}/{repository}@{digest}"
        document = _document(data, where)
        media_type = document.get("mediaType") or media_type  # optional in OCI's manifests
        if media_type not in allowed:
            raise FleetError(
                "The store holds something else under this digest than the lock says",
                where=where,
                seen=f"mediaType {media_type!r} instead of {allowed[0]}",
                remedy="publish again with this version of the collection",
            )
        content.manifests[repository, digest] = (media_type, data)
        for blob in _blobs(document, repository, where):
            content.blobs[blob.digest] = blob
        return document

    def image(repository: str, index_digest: str, entry: Mapping[str, Any], where: str) -> None:
        index = manifest(repository, index_digest, INDEXES)
        listed = {child.get("digest") for child in _list(index, "manifests", where)}
        platforms = _mapping(entry, "platforms", where)
        for architecture in architectures:
            if architecture not in platforms:
                raise FleetError(
                    "The lock has no image for an architecture of this site",
                    where=f"{where}.platforms",
                    seen=f"{architecture} is not among {', '.join(sorted(platforms)) or 'none'}",
                    remedy=f"publish it for {architecture}, or leave that out of architectures",
                )
            child = _digest(_mapping(platforms, architecture, f"{where}.platforms"), "digest", where)
            if child not in listed:
                raise FleetError(
                    "The lock and the image index disagree",
                    where=f"{where}.platforms.{architecture}",
                    seen=f"{child} is not in {index_digest}",
                    remedy="publish again, do not edit the lock by hand",
                )
            manifest(repository, child, MANIFESTS)

    for entry, where in _images(lock):
        repository = check_repository(entry.get("repository"), f"{where}.repository")
        image(repository, _digest(entry, "digest", where), entry, where)
    for entry, where in _models(lock):
        repository = check_repository(entry.get("repository"), f"{where}.repository")
        model = manifest(repository, _digest(entry, "digest", where), MANIFESTS[:1])
        blob = _digest(_mapping(entry, "blob", where), "digest", f"{where}.blob")
        if blob not in {layer.get("digest") for layer in _list(model, "layers", where)}:
            raise FleetError(
                "The lock and the model's manifest disagree",
                where=f"{where}.blob",
                seen=f"{blob} is not a layer of {entry['digest']}",
                remedy="publish again, do not edit the lock by hand",
            )
        image(repository, _digest(entry, "index", where), entry, where)
    return content


class _Tree:
    """The directories and files under the mirror's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"
        self.generations = root / "generations"
        self.staging = root / "staging"
        self.cas = root / "cas" / "sha256"

    def blob(self, digest: str) -> Path:
        return self.cas / digest.removeprefix("sha256:")

    def partial(self, digest: str) -> Path:
        return self.staging / (digest.removeprefix("sha256:") + ".part")

    def partial_size(self, blob: Blob) -> int:
        with contextlib.suppress(FileNotFoundError):
            return min(self.partial(blob.digest).stat().st_size, blob.size)
        return 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        for directory in (self.root, self.generations, self.staging, self.cas):
            make_directory(directory)
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FleetError(
                    "Another synchronization of this mirror is under way",
                    where=str(self.root),
                    remedy="wait until it has ended, then run again",
                ) from error
            yield

    def current_target(self) -> str | None:
        """Return the name of the generation that is served."""
        return self.current.readlink().name if self.current.is_symlink() else None

    def current_serial(self) -> int | None:
        target = self.current_target()
        return _serial(target) if target else None

    def read_generation(self) -> dict[str, bytes]:
        """Return the files of the generation that is served."""
        if not self.current.is_dir():
            return {}
        return {
            path.relative_to(self.current).as_posix(): path.read_bytes()
            for path in self.current.rglob("*")
            if path.is_file()
        }

    def manifests(self) -> dict[str, tuple[bytes, str]]:
        """Return the intact manifests of all generations and their media types, by digest."""
        media_types = {extension: media_type for media_type, extension in EXTENSIONS.items()}
        found = {}
        for path in self.generations.glob("*/v2/**/manifests/sha256:*"):
            digest, _, extension = path.name.partition(".")
            data = path.read_bytes()
            if sha256_digest(data) == digest and extension in media_types:
                found[digest] = data, media_types[extension]
        return found

    def switch(self, serial: int, files: Mapping[str, bytes]) -> None:
        """Serve a generation with these files from one moment to the next."""
        target = self.generations / str(serial)
        if self.current_target() == target.name:
            # A directory cannot be replaced at once while it is served: serve an equal one meanwhile.
            self._write_generation(self.generations / f"{serial}.new", files)
            self._point_current_to(f"{serial}.new")
        self._write_generation(target, files)
        self._point_current_to(target.name)

    def _write_generation(self, target: Path, files: Mapping[str, bytes]) -> None:
        work = self.staging / "generation"
        _remove_tree(work)
        for name, data in files.items():
            make_directory((work / name).parent)
            write_file(work / name, data)
        for directory, _, _ in os.walk(work, topdown=False):
            sync_directory(Path(directory))
        self._remove_generation(target)
        work.rename(target)
        sync_directory(self.generations)

    def _point_current_to(self, name: str) -> None:
        link = self.root / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("generations") / name)
        link.replace(self.current)
        sync_directory(self.root)

    def _remove_generation(self, path: Path) -> None:
        if path.exists():
            doomed = self.staging / "removed"
            _remove_tree(doomed)
            path.rename(doomed)
            _remove_tree(doomed)

    def garbage(self, serial: int, content: Content, keep: int) -> tuple[list[Path], list[Path], list[Path]]:
        """Return the generations, blobs and leftovers that are of no use once `serial` is served."""
        others = [path for path in self.generations.glob("*") if path.name != str(serial)]
        # "3.new" is what an interrupted switch left behind.
        others.sort(key=lambda path: (path.name.isdigit(), _serial(path.name)), reverse=True)
        used = set(content.blobs)
        kept: list[Path] = []
        for generation in others:
            if len(kept) < keep - 1 and generation.name.isdigit():
                with contextlib.suppress(FleetError):  # a damaged generation is of no use
                    used |= _blobs_of_generation(generation)
                    kept.append(generation)
        blobs = [path for path in self.cas.glob("*") if f"sha256:{path.name}" not in used]
        return [path for path in others if path not in kept], blobs, list(self.staging.glob("*"))

    def remove(self, generations: Sequence[Path], blobs: Sequence[Path], leftovers: Sequence[Path]) -> None:
        for path in generations:
            self._remove_generation(path)
        sync_directory(self.generations)  # no generation may come back without its blobs
        for path in [*blobs, *leftovers]:
            if path.is_dir():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)


def _serial(name: str) -> int:
    digits = name.partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _blobs_of_generation(generation: Path) -> set[str]:
    digests = set()
    for path in generation.glob("v2/**/manifests/*-manifest"):
        digests |= {blob.digest for blob in _blobs(_document(path.read_bytes(), str(path)), "", str(path))}
    return digests


def _remove_tree(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _blobs(document: Mapping[str, Any], repository: str, where: str) -> list[Blob]:
    """Return config and layers of an image manifest; none of an index."""
    if "manifests" in document:
        return []
    parts = [_mapping(document, "config", where), *_list(document, "layers", where)]
    return [Blob(repository, _digest(part, "digest", where), _integer(part, "size", where)) for part in parts]


def _document(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _malformed(where, "not JSON") from error
    if not isinstance(document, dict):
        raise _malformed(where, "not a JSON object")
    return document


def _images(lock: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each image's entry of the lock and its place there."""
    return _children(_mapping(lock, "images", "fleet.lock.yml"), "fleet.lock.yml: images")


def _models(lock: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the entry of each variant of each version of each model, and its place in the lock."""
    for versions, model in _children(_mapping(lock, "models", "fleet.lock.yml"), "fleet.lock.yml: models"):
        for version, place in _children(versions, model):
            yield from _children(_mapping(version, "variants", place), f"{place}.variants")


def _children(parent: Mapping[str, Any], where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for name, child in parent.items():
        if not isinstance(child, Mapping):
            raise _malformed(f"{where}.{name}", repr(child))
        yield child, f"{where}.{name}"


def _mapping(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise _malformed(where, f"{key} is {value!r}")
    return value


def _list(parent: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _malformed(where, f"{key} is {value!r}")
    return value


def _integer(parent: Mapping[str, Any], key: str, where: str, at_least: int = 0) -> int:
    value = parent.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise _malformed(where, f"{key} is {value!r}")
    return value


def _digest(parent: Mapping[str, Any], key: str, where: str) -> str:
    return check_digest(parent.get(key), f"{where}.{key}")


def _malformed(where: str, seen: str) -> FleetError:
    return FleetError(
        "Malformed content",
        where=where,
        seen=seen[:200],
        remedy="publish again; fleet.lock.yml and manifests are written by the collection, not by hand",
    )
