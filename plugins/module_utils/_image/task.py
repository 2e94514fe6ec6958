# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole job of the module oci_image: assemble an image, push it, write it to an archive."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.assembly import Assembly, Image
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache, NotBuiltError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.copy import ImageCopy
from ansible_collections.edgeml.fleet.plugins.module_utils._image.delivery import (
    is_archived,
    is_pushed,
    push,
    write_archive,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import parse_recipe
from ansible_collections.edgeml.fleet.plugins.module_utils._image.upstream import UpstreamImage
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    check_repository,
    check_tag,
    sha256_digest,
    split_reference,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry


def assemble_and_deliver(options: dict[str, Any], *, check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Assemble or copy, and deliver, the image that the module's `options` describe; return the module's result."""
    repository = options["repository"] or ""
    registry = None
    if options["registry"]:
        check_repository(repository, "repository")
        check_tag(options["tag"], "tag")
        try:
            registry = Registry.from_options(options["registry"], patient=not check_mode)
            registry.ping()  # before minutes of work
        except FleetError as error:
            if not check_mode:
                raise
            warn(f"What the registry lacks is not known. {error}")
            registry = None
    deliver = _copy if options["image"] else _assemble
    with _cache(options, check_mode) as cache, cache.locked():
        result = deliver(options, registry, cache, check_mode)
    if options["registry"] and registry is None:
        result["changed"] = True
    return result


@contextmanager
def _cache(options: dict[str, Any], check_mode: bool) -> Iterator[LayerCache]:
    """The cache of layers; in check mode one that does not exist yet is an empty directory that goes again."""
    directory = Path(options["cache"]).resolve()
    if check_mode and not directory.exists():
        with tempfile.TemporaryDirectory() as empty:
            yield LayerCache(Path(empty), build=False)
    else:
        yield LayerCache(directory, rebuild=options["rebuild"], build=not check_mode)


def _copy(options: dict[str, Any], registry: Registry | None, cache: LayerCache, check_mode: bool) -> dict[str, Any]:
    address, source_repository, digest = split_reference(options["image"], "image")
    source = Registry(address, **_access(options))
    image = ImageCopy(source, source_repository, digest, registry, options["repository"])
    entry = image.lock_entry(options["architectures"])
    tag = options["tag"]
    changed = not image.is_complete(tag) if check_mode or registry is None else image.send(tag, cache)
    return {"changed": changed, "image": entry}


def _assemble(
    options: dict[str, Any], registry: Registry | None, cache: LayerCache, check_mode: bool
) -> dict[str, Any]:
    recipe = parse_recipe(options["recipe"])
    source_root = Path(options["source_root"] or ".")
    repository = options["repository"] or ""
    archive = options["archive"]
    if archive and archive["architecture"] not in options["architectures"]:
        raise FleetError(
            "The image is not assembled for the archive's architecture",
            where="archive.architecture",
            seen=archive["architecture"],
            remedy="name it in architectures too",
        )
    with cache.work_directory() as work:
        upstream = None
        near = list(options["mount_from"])
        if options["base_image"]:
            upstream = UpstreamImage(options["base_image"], cache, **_access(options))
            if registry and upstream.address == registry.address:
                near.append(upstream.repository)
        flavours = [Path(path) for path in options["requirements"]]
        try:
            image = Assembly(recipe, source_root, cache, upstream, work, flavours).image(options["architectures"])
        except NotBuiltError:
            return {"changed": True}
        changed = False
        if registry and check_mode:
            changed |= not is_pushed(image, registry, repository, options["tag"])
        elif registry:
            changed |= push(image, registry, repository, options["tag"], near)
        if archive:
            write = is_archived if check_mode else write_archive
            outcome = write(image.platforms[archive["architecture"]], Path(archive["path"]), archive["name"] or "")
            changed |= outcome is not check_mode
    return {"changed": changed, **_described(image, repository)}


def _access(options: dict[str, Any]) -> dict[str, Any]:
    """Return user name, password and authorities for the registry that an image comes from."""
    return {key: options[f"base_{key}"] or "" for key in ("username", "password", "ca_file")}


def _described(image: Image, repository: str) -> dict[str, Any]:
    platforms = image.platforms.items()
    return {
        "image": image.lock_entry(repository),
        "image_ids": {architecture: sha256_digest(platform.config) for architecture, platform in platforms},
        "layers": {
            architecture: [
                {
                    "purpose": layer.purpose,
                    "digest": layer.file.digest,
                    "size": layer.file.size,
                    "uncompressed_size": layer.file.uncompressed_size,
                }
                for layer in platform.layers
            ]
            for architecture, platform in platforms
        },
        "packages": {
            architecture: {**platform.debian_packages, **platform.python_packages}
            for architecture, platform in platforms
        },
    }
