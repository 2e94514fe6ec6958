# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests that refer to another one: signatures, bills of material (OCI distribution specification 1.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    check_digest,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source

EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG = b"{}"


def artifact_manifest(
    kind: str, data: bytes, subject: Mapping[str, Any], annotations: Mapping[str, str] | None = None
) -> bytes:
    """Return the manifest by which `data` of the media type `kind` refers to `subject`, a descriptor."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": kind,
        "config": descriptor(EMPTY, EMPTY_CONFIG),
        "layers": [descriptor(kind, data)],
        "subject": dict(subject),
    }
    return canonical_json({**manifest, "annotations": dict(annotations)} if annotations else manifest)


def referrers_tag(digest: str) -> str:
    """Return the tag that lists what refers to a manifest, where a registry has no referrers API."""
    return digest.replace(":", "-")


def registry_referrers(registry: Source, repository: str, digest: str) -> bytes | None:
    """Return the index of what refers to a manifest, by the registry's API or under the tag that stands for it."""
    index = registry.find_referrers(repository, digest)
    if index is None:
        index = (registry.find_manifest(repository, referrers_tag(digest)) or (None,))[0]
    return index


def with_referrer(index: bytes | None, manifest: bytes) -> bytes:
    """Return the index of what refers to a manifest, with one more of them added to what `index` lists."""
    one = descriptor(IMAGE_MANIFEST, manifest, artifactType=str(json.loads(manifest).get("artifactType")))
    before = [other for other in (json.loads(index)["manifests"] if index else []) if other["digest"] != one["digest"]]
    return canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [*before, one]})


def listed(index: bytes | None) -> list[str]:
    """Return the digests of the manifests in an index; nothing if it is none."""
    try:
        manifests: list[dict[str, Any]] = json.loads(index)["manifests"] if index else []
        return [check_digest(manifest["digest"], "a list of referrers") for manifest in manifests]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, FleetError):
        return []


def is_attached(registry: Registry, repository: str, manifest: bytes) -> bool:
    """Return whether a registry holds a manifest of `artifact_manifest`, and lists it with its subject."""
    subject = json.loads(manifest)["subject"]["digest"]
    digest = sha256_digest(manifest)
    return registry.has_manifest(repository, digest) and digest in listed(
        registry_referrers(registry, repository, subject)
    )


def attach(registry: Registry, repository: str, manifest: bytes, data: bytes) -> None:
    """Push a manifest of `artifact_manifest` and its content beside the subject, which is there already."""
    subject = json.loads(manifest)["subject"]["digest"]
    for blob in (EMPTY_CONFIG, data):
        registry.push_blob(repository, blob, sha256_digest(blob))
    registry.push_manifest(repository, sha256_digest(manifest), manifest, IMAGE_MANIFEST)
    if registry.find_referrers(repository, subject) is None:  # the registry keeps no such list: the tag is it
        index = registry_referrers(registry, repository, subject)
        registry.push_manifest(repository, referrers_tag(subject), with_referrer(index, manifest), IMAGE_INDEX)
