# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mirror holds for a lock: manifests and blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import (
    digest_of,
    document_of,
    images,
    integer,
    mapping,
    mappings,
    models,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    check_repository,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import with_referrer
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source

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
class MirrorContent:
    """What a lock asks a mirror to hold."""

    blobs: dict[str, Blob] = field(default_factory=dict)  # by digest
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """By repository and digest: media type and bytes."""
    tagged: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """Image manifests by repository and tag."""
    referrers: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """Indexes of what refers to a manifest, by its repository and digest."""
    at_hand: dict[str, bytes] = field(default_factory=dict)
    """Those of the blobs that need not be fetched."""

    def files(self) -> dict[str, bytes]:
        """Return the files of the generation, by their path in it."""
        files = {
            f"v2/{repository}/manifests/{digest}.{EXTENSIONS[media_type]}": data
            for (repository, digest), (media_type, data) in self.manifests.items()
        }
        for (repository, tag), data in self.tagged.items():
            files[f"v2/{repository}/manifests/{tag}.{EXTENSIONS[IMAGE_MANIFEST]}"] = data
        for (repository, digest), data in self.referrers.items():
            files[referrers_path(repository, digest)] = data
        for repository in dict.fromkeys(repository for repository, _digest in self.manifests):
            tags = sorted(tag for other, tag in self.tagged if other == repository)
            files[f"v2/{repository}/tags/list"] = canonical_json({"name": repository, "tags": tags})
        return files


def referrers_path(repository: str, digest: str) -> str:
    """Return where a generation keeps the index of what refers to a manifest."""
    return f"v2/{repository}/referrers/{digest}.{EXTENSIONS[IMAGE_INDEX]}"


def resolve(
    local: Mapping[str, tuple[bytes, str]],
    store: Source,
    lock: Mapping[str, Any],
    architectures: Sequence[str],
    *,
    every_platform: bool = False,
) -> MirrorContent:
    """Return what the lock names; a manifest that is not in `local` (by digest) is read from the store.

    With `every_platform` that is also what the lock names for other architectures.
    """
    content = MirrorContent()

    def manifest(repository: str, digest: str, allowed: Sequence[str]) -> dict[str, Any]:
        return _add_manifest(content, local, store, repository, digest, allowed)

    def sbom(repository: str, entry: Mapping[str, Any], where: str) -> None:
        if "sbom" not in entry:  # an image that was copied, or a lock of an earlier release of the collection
            return
        subject = digest_of(entry, "digest", where)
        digest = digest_of(entry, "sbom", where)
        manifest(repository, digest, MANIFESTS[:1])
        content.referrers[repository, subject] = with_referrer(None, content.manifests[repository, digest][1])

    def image(repository: str, index_digest: str, entry: Mapping[str, Any], where: str) -> None:
        index = manifest(repository, index_digest, INDEXES)
        listed = {child.get("digest") for child in mappings(index, "manifests", where)}
        platforms = mapping(entry, "platforms", where)
        for architecture in dict.fromkeys([*architectures, *(platforms if every_platform else ())]):
            if architecture not in platforms:
                raise FleetError(
                    "The lock has no image for an architecture of this site",
                    where=f"{where}.platforms",
                    seen=f"{architecture} is not among {', '.join(sorted(platforms)) or 'none'}",
                    remedy=f"publish it for {architecture}, or leave that out of architectures",
                )
            platform = mapping(platforms, architecture, f"{where}.platforms")
            child = digest_of(platform, "digest", where)
            if child not in listed:
                raise FleetError(
                    "The lock and the image index disagree",
                    where=f"{where}.platforms.{architecture}",
                    seen=f"{child} is not in {index_digest}",
                    remedy="publish again, do not edit the lock by hand",
                )
            manifest(repository, child, MANIFESTS)
            sbom(repository, platform, f"{where}.platforms.{architecture}")

    for entry, where in images(lock):
        repository = check_repository(entry.get("repository"), f"{where}.repository")
        image(repository, digest_of(entry, "digest", where), entry, where)
    for entry, where in models(lock):
        repository = check_repository(entry.get("repository"), f"{where}.repository")
        model = manifest(repository, digest_of(entry, "digest", where), MANIFESTS[:1])
        blob = digest_of(mapping(entry, "blob", where), "digest", f"{where}.blob")
        if blob not in {layer.get("digest") for layer in mappings(model, "layers", where)}:
            raise FleetError(
                "The lock and the model's manifest disagree",
                where=f"{where}.blob",
                seen=f"{blob} is not a layer of {entry['digest']}",
                remedy="publish again, do not edit the lock by hand",
            )
        sbom(repository, entry, where)
        image(repository, digest_of(entry, "index", where), entry, where)
    return content


def add_listed(content: MirrorContent, local: Mapping[str, tuple[bytes, str]], store: Source) -> None:
    """Add what the indexes of `content` list and no lock names: other platforms, attestations. Nobody signed them."""
    indexes = [key for key, (media_type, _data) in content.manifests.items() if media_type in INDEXES]
    while indexes:
        repository, digest = indexes.pop()
        where = f"{store.address}/{repository}@{digest}"
        for child in mappings(document_of(content.manifests[repository, digest][1], where), "manifests", where):
            key = repository, digest_of(child, "digest", where)
            if key not in content.manifests:
                _add_manifest(content, local, store, *key, (*MANIFESTS, *INDEXES))
                if content.manifests[key][0] in INDEXES:
                    indexes.append(key)


def _add_manifest(
    content: MirrorContent,
    local: Mapping[str, tuple[bytes, str]],
    store: Source,
    repository: str,
    digest: str,
    allowed: Sequence[str],
) -> dict[str, Any]:
    """Add a manifest and its blobs to `content`; return what it says."""
    data, media_type = local.get(digest) or store.get_manifest(repository, digest)
    where = f"{store.address}/{repository}@{digest}"
    document = document_of(data, where)
    media_type = document.get("mediaType") or media_type  # optional in OCI's manifests
    if media_type not in allowed:
        raise FleetError(
            "The store holds something else under this digest than the lock says",
            where=where,
            seen=f"mediaType {media_type!r} instead of {allowed[0]}",
            remedy="publish again with this version of the collection",
        )
    content.manifests[repository, digest] = (media_type, data)
    for blob in blobs_of(document, repository, where):
        content.blobs[blob.digest] = blob
    return document


def blobs_of(document: Mapping[str, Any], repository: str, where: str) -> list[Blob]:
    """Return config and layers of an image manifest; none of an index."""
    if "manifests" in document:
        return []
    parts = [mapping(document, "config", where), *mappings(document, "layers", where)]
    return [Blob(repository, digest_of(part, "digest", where), integer(part, "size", where)) for part in parts]
