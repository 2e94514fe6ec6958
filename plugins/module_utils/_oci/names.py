# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and digests of OCI content (image specification 1.1, distribution specification 1.1)."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

# CNCF ModelPack (model-spec)
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT_TAR = "application/vnd.cncf.model.weight.v1.tar"
MODEL_FILEPATH = "org.cncf.model.filepath"

# Read from registries that hold Docker's own images, never written.
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TAR_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

MANIFEST_TYPES = (IMAGE_INDEX, IMAGE_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


def sha256_digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(text: object, where: str) -> str:
    """Return `text` if it is a ``sha256:<64 lower-case hex>`` digest; raise FleetError that names `where` otherwise."""
    if isinstance(text, str) and _DIGEST.fullmatch(text):
        return text
    raise FleetError(
        "Not a SHA-256 digest",
        where=where,
        seen=repr(text),
        remedy="give it as sha256: and 64 lower-case hexadecimal digits",
    )


def check_repository(text: object, where: str) -> str:
    """Return `text` if it is a repository name (distribution specification, "Pulling manifests"); raise FleetError."""
    if isinstance(text, str) and len(text) <= 255 and _REPOSITORY.fullmatch(text):
        return text
    raise FleetError(
        "Not a repository name",
        where=where,
        seen=repr(text),
        remedy="use lower-case letters, digits and single . _ - between them, parts separated by /",
    )


def check_tag(text: object, where: str) -> str:
    """Return `text` if it is a tag (distribution specification, "Pulling manifests"); raise FleetError otherwise."""
    if isinstance(text, str) and _TAG.fullmatch(text):
        return text
    raise FleetError(
        "Not a tag",
        where=where,
        seen=repr(text),
        remedy="use at most 128 letters, digits and . _ -, not starting with . or -",
    )


def split_reference(reference: str, where: str) -> tuple[str, str, str]:
    """Return address, repository and digest of ``registry/repository@sha256:<digest>``; raise FleetError otherwise.

    ``docker.io`` is Docker Hub, as in Docker's own names: its registry has another address, and its own images are
    below ``library/``.
    """
    name, _separator, digest = reference.partition("@")
    address, _separator, repository = name.partition("/")
    if not repository or not digest:
        raise FleetError(
            "Content of a registry is not named by digest",
            where=where,
            seen=reference,
            remedy="give it as registry/repository@sha256:<digest>",
        )
    if not re.search(r"[.:]", address) and address != "localhost":  # Docker takes it for a user of Docker Hub
        raise FleetError(
            "The name of a registry is missing",
            where=where,
            seen=reference,
            remedy=f"write docker.io/{reference} if it is on Docker Hub, else a port: {address}:443/{repository}@...",
        )
    if address in ("docker.io", "index.docker.io"):
        address = "registry-1.docker.io"
        repository = repository if "/" in repository else f"library/{repository}"
    return address, check_repository(repository, where), check_digest(digest, where)


def descriptor(
    media_type: str, data: bytes | None = None, *, digest: str = "", size: int = 0, **extra: Any
) -> dict[str, Any]:
    """Return the content descriptor of `data`, or of content known by `digest` and `size` (bytes).

    `extra` adds further descriptor properties such as ``platform``, ``annotations`` or ``artifactType``.
    """
    if data is not None:
        digest, size = sha256_digest(data), len(data)
    return {"mediaType": media_type, "digest": digest, "size": size, **extra}
