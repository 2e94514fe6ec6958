# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A finished image from another registry, copied with all its digests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob


@dataclass
class _Found:
    """What an index leads to: manifests, children before their parents, and sizes of blobs, all by digest."""

    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    """Digests of manifests that the target lacks."""


class ImageCopy:
    """The way of ``<source>/<source_repository>@<digest>`` (an image index) to ``<target>/<repository>``.

    What the target has is read from there, so that a copy that is complete asks the source nothing. `target` may be
    None: then all is read from the source and nothing can be sent.
    """

    def __init__(
        self, source: Registry, source_repository: str, digest: str, target: Registry | None, repository: str
    ) -> None:
        self._source = source
        self._source_repository = source_repository
        self._target = target
        self._repository = repository
        self.digest = digest
        self._found = _Found()
        self._visit(digest)

    def lock_entry(self, architectures: Sequence[str]) -> dict[str, Any]:
        """Return what fleet.lock.yml says of the image; raise FleetError if an architecture is missing."""
        index = json.loads(self._found.manifests[self.digest][0])
        children = {
            child["platform"].get("architecture"): child["digest"]
            for child in reversed(index.get("manifests", []))
            if child.get("platform", {}).get("os") == "linux"
        }
        platforms = {}
        for architecture in architectures:
            if architecture not in children:
                raise FleetError(
                    f"The image has no manifest for linux/{architecture}",
                    where=self._where,
                    seen=", ".join(sorted(children)) or "an image of one platform",
                    remedy="name the digest of an image index for all architectures of the fleet, or set "
                    "edgeml_architectures",
                )
            data = self._found.manifests[children[architecture]][0]
            manifest = json.loads(data)
            parts = [manifest["config"], *manifest["layers"]]
            platforms[architecture] = {
                "digest": children[architecture],
                "size": len(data) + sum(part["size"] for part in parts),
            }
        return {"repository": self._repository, "digest": self.digest, "platforms": platforms}

    def is_complete(self, tag: str) -> bool:
        """Return whether the target holds the whole image under the tag."""
        target = self._target
        return (
            target is not None
            and not self._found.missing
            and all(target.has_blob(self._repository, blob) for blob in self._found.blobs)
            and target.manifest_digest(self._repository, tag) == self.digest
        )

    def send(self, tag: str, cache: LayerCache) -> bool:
        """Send what the target lacks, manifests last; return whether anything was. Blobs pass through `cache`."""
        target = self._target
        if target is None:
            raise ValueError("no registry to send to")
        if self.is_complete(tag):
            return False
        near = self._source.address == target.address and self._source_repository != self._repository
        for digest, size in self._found.blobs.items():
            if target.has_blob(self._repository, digest):
                continue
            if near and target.mount_blob(self._repository, digest, self._source_repository):
                continue
            name = digest.removeprefix("sha256:")
            path = cache.blobs / name
            kept = path.exists()  # by a base image
            fetch_blob(self._source, self._source_repository, digest, size, path, cache.partial / name)
            target.push_blob(self._repository, path, digest)
            if not kept:
                path.unlink()
        for digest, (data, media_type) in self._found.manifests.items():
            if digest in self._found.missing:
                target.push_manifest(self._repository, digest, data, media_type)
        target.push_manifest(self._repository, tag, *self._found.manifests[self.digest])
        return True

    @property
    def _where(self) -> str:
        return f"{self._source.address}/{self._source_repository}@{self.digest}"

    def _visit(self, digest: str) -> None:
        there = self._target is not None and self._target.has_manifest(self._repository, digest)
        if there and self._target:
            data, media_type = self._target.get_manifest(self._repository, digest)
        else:
            data, media_type = self._source.get_manifest(self._source_repository, digest)
            self._found.missing.add(digest)
        try:
            document = json.loads(data)
            for child in document.get("manifests", []):
                self._visit(child["digest"])
            if "manifests" not in document:
                parts = [document["config"], *document["layers"]]
                self._found.blobs.update((part["digest"], part["size"]) for part in parts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FleetError(
                "The image holds a manifest that cannot be read",
                where=self._where,
                seen=f"{digest}: {type(error).__name__} {error}",
                remedy="use an image by the OCI or Docker specification",
            ) from error
        self._found.manifests[digest] = (data, media_type)
