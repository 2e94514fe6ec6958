# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole job of the module oci_image: assemble an image, push it, write it to an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image import Assembly, Image
from ansible_collections.edgeml.fleet.plugins.module_utils._image_cache import LayerCache, NotBuiltError
from ansible_collections.edgeml.fleet.plugins.module_utils._image_delivery import (
    is_archived,
    is_pushed,
    push,
    write_archive,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._image_recipe import parse_recipe
from ansible_collections.edgeml.fleet.plugins.module_utils._image_upstream import UpstreamImage
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import check_repository, check_tag, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._registry import Registry


def assemble_and_deliver(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Assemble and deliver the image that the module's `options` describe; return the module's result."""
    recipe = parse_recipe(options["recipe"])
    source_root = Path(options["source_root"] or ".")
    archive = options["archive"]
    repository = options["repository"] or ""
    registry = None
    if options["registry"]:
        check_repository(repository, "repository")
        check_tag(options["tag"], "tag")
        registry = Registry.from_options(options["registry"])
        registry.ping()  # before minutes of work
    if archive and archive["architecture"] not in options["architectures"]:
        raise FleetError(
            "The image is not assembled for the archive's architecture",
            where="archive.architecture",
            seen=archive["architecture"],
            remedy="name it in architectures too",
        )
    cache = LayerCache(Path(options["cache"]).resolve(), rebuild=options["rebuild"], build=not check_mode)
    with cache.locked(), cache.work_directory() as work:
        upstream = None
        if options["base_image"]:
            upstream = UpstreamImage(
                options["base_image"],
                cache,
                username=options["base_username"] or "",
                password=options["base_password"] or "",
                ca_file=options["base_ca_file"] or "",
            )
        try:
            image = Assembly(recipe, source_root, cache, upstream, work).image(options["architectures"])
        except NotBuiltError:
            return {"changed": True}
        changed = False
        if registry and check_mode:
            changed |= not is_pushed(image, registry, repository, options["tag"])
        elif registry:
            changed |= push(image, registry, repository, options["tag"], upstream)
        if archive:
            write = is_archived if check_mode else write_archive
            outcome = write(image.platforms[archive["architecture"]], Path(archive["path"]), archive["name"] or "")
            changed |= outcome is not check_mode
    return {"changed": changed, **_described(image, repository)}


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
        "packages": {architecture: dict(platform.packages) for architecture, platform in platforms},
    }
