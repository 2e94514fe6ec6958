# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An assembled image on its way out: to a registry, or into a file for ``docker load``."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.assembly import Image, PlatformImage
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_INDEX, IMAGE_MANIFEST, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import attach, is_attached
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry


def is_pushed(image: Image, registry: Registry, repository: str, tag: str) -> bool:
    """Return whether the registry holds the whole image, and the tag names it."""
    if registry.manifest_digest(repository, tag) != image.digest:
        return False
    return (
        all(
            registry.has_manifest(repository, sha256_digest(platform.manifest)) for platform in image.platforms.values()
        )
        and all(registry.has_blob(repository, digest) for digest in _blobs(image))
        and all(is_attached(registry, repository, image.sbom(repository, name)[0]) for name in image.platforms)
    )


def push(image: Image, registry: Registry, repository: str, tag: str, near: Sequence[str] = ()) -> bool:
    """Send what the registry lacks, manifests last; return whether anything was sent. Raise FleetError.

    Layers that one of the repositories `near` of the same registry holds are not sent.
    """
    if is_pushed(image, registry, repository, tag):
        return False
    for digest, content in _blobs(image).items():
        if not isinstance(content, bytes) and not registry.has_blob(repository, digest):
            for other in near:
                if other != repository and registry.has_blob(other, digest):
                    registry.mount_blob(repository, digest, other)
        registry.push_blob(repository, content, digest)
    for platform in image.platforms.values():
        registry.push_manifest(repository, sha256_digest(platform.manifest), platform.manifest, IMAGE_MANIFEST)
    for architecture in image.platforms:
        attach(registry, repository, *image.sbom(repository, architecture))
    registry.push_manifest(repository, tag, image.index, IMAGE_INDEX)
    return True


def _blobs(image: Image) -> dict[str, Path | bytes]:
    """Return each blob of the image once, by digest."""
    blobs: dict[str, Path | bytes] = {}
    for platform in image.platforms.values():
        blobs.update((layer.file.digest, layer.file.path) for layer in platform.layers)
        blobs[sha256_digest(platform.config)] = platform.config
    return blobs


def is_archived(image: PlatformImage, path: Path, name: str) -> bool:
    """Return whether the file at `path` is the archive of this image."""
    try:
        with tarfile.open(path) as archive:
            first = archive.extractfile("manifest.json")
            return first is not None and first.read() == _archive_manifest(image, name)
    except (OSError, KeyError, tarfile.TarError):
        return False


def write_archive(image: PlatformImage, path: Path, name: str) -> bool:
    """Write a tar that ``docker load`` of every engine reads; return False if it is there already.

    `name` is the ``repository:tag`` that the engine gives the image, or empty. Equal images give equal bytes; the file
    appears in one step. Raise FleetError if it cannot be written.
    """
    if is_archived(image, path, name):
        return False
    layers = {_layer_name(layer.file.diff_id): layer.file for layer in image.layers}
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            partial = Path(file.name)
            try:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for entry_name, data in (
                        ("manifest.json", _archive_manifest(image, name)),
                        (_config_name(image), image.config),
                    ):
                        entry = tarfile.TarInfo(entry_name)
                        entry.size = len(data)
                        archive.addfile(entry, io.BytesIO(data))
                    for entry_name, layer in layers.items():
                        entry = tarfile.TarInfo(entry_name)
                        entry.size = layer.size
                        with layer.path.open("rb") as content:
                            archive.addfile(entry, content)
                partial.chmod(0o644)
                partial.replace(path)
            except BaseException:
                partial.unlink()
                raise
    except OSError as error:
        raise FleetError(
            "The image archive cannot be written",
            where=str(path),
            seen=str(error),
            remedy="check the directory, its rights and the free space",
        ) from error
    return True


def _archive_manifest(image: PlatformImage, name: str) -> bytes:
    layers = [_layer_name(layer.file.diff_id) for layer in image.layers]
    tags = [name] if name else None
    return canonical_json([{"Config": _config_name(image), "RepoTags": tags, "Layers": layers}])


def _config_name(image: PlatformImage) -> str:
    return sha256_digest(image.config).removeprefix("sha256:") + ".json"


def _layer_name(diff_id: str) -> str:
    return diff_id.removeprefix("sha256:") + "/layer.tar"
