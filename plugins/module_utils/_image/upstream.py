# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A base image that comes from a registry, by the digest of its index."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import LayerFile
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    DOCKER_LAYER_TAR_GZIP,
    LAYER_TAR_GZIP,
    check_digest,
    sha256_digest,
    split_reference,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob


class UpstreamImage:
    """The image ``<registry>/<repository>@sha256:<index>``; its content is kept in `cache` and read from there.

    Parameters
    ----------
    reference : str
        The image by digest. FleetError if it is anything else.
    username, password, ca_file : str
        See Registry.
    """

    def __init__(self, reference: str, cache: LayerCache, *, username: str, password: str, ca_file: str) -> None:
        self.address, self.repository, self.digest = split_reference(reference, "base_image")
        self._registry = Registry(self.address, username, password, ca_file)
        self._cache = cache
        self._where = reference
        self._one_at_a_time = threading.Lock()

    def identity(self) -> object:
        """Return the digest of the index."""
        return self.digest

    def packages(self, architecture: str) -> Mapping[str, str]:
        """Return nothing: what is in the image is not known by name."""
        return {}

    def layers(self, architecture: str) -> list[LayerFile]:
        """Fetch and return the layers for one architecture, lowest first."""
        manifest = self._manifest(architecture)
        diff_ids = self.config(architecture)["rootfs"]["diff_ids"]
        layers = []
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True):
            if layer["mediaType"] not in (LAYER_TAR_GZIP, DOCKER_LAYER_TAR_GZIP):
                raise self._unusable(f"a layer of type {layer['mediaType']}", "use an image with gzip layers")
            path = self._blob(layer)
            layers.append(LayerFile(path, layer["digest"], layer["size"], diff_id))
        return layers

    def config(self, architecture: str) -> Mapping[str, Any]:
        """Return the image configuration for one architecture."""
        config = json.loads(self._blob(self._manifest(architecture)["config"]).read_bytes())
        if not isinstance(config, dict):
            raise self._unusable("a configuration that is no mapping", "use another image")
        return config

    def _manifest(self, architecture: str) -> Mapping[str, Any]:
        index = self._json(self.digest)
        if "manifests" not in index:
            raise self._unusable("a manifest of one platform", "name the digest of the image index")
        for child in index["manifests"]:
            platform = child.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                manifest = self._json(child["digest"])
                if "config" not in manifest or "layers" not in manifest:
                    raise self._unusable("a child of the index that is no image manifest", "use another image")
                return manifest
        raise self._unusable(f"no manifest for linux/{architecture}", "use an image for all wanted architectures")

    def _json(self, digest: str) -> dict[str, Any]:
        path = self._cache.blobs / check_digest(digest, self._where).removeprefix("sha256:")
        data = path.read_bytes() if path.exists() else b""
        if sha256_digest(data) != digest:  # it may have been cut short with the power
            with self._one_at_a_time, self._cache.work_directory() as work:
                data, _type = self._registry.get_manifest(self.repository, digest)
                (work / "manifest").write_bytes(data)
                (work / "manifest").replace(path)
        value = json.loads(data)
        return value if isinstance(value, dict) else {}

    def _blob(self, content: Mapping[str, Any]) -> Path:
        digest = check_digest(content["digest"], self._where)
        name = digest.removeprefix("sha256:")
        path = self._cache.blobs / name
        with self._one_at_a_time:
            fetch_blob(self._registry, self.repository, digest, content["size"], path, self._cache.partial / name)
        return path

    def _unusable(self, seen: str, remedy: str) -> FleetError:
        return FleetError("The base image cannot be used", where=self._where, seen=seen, remedy=remedy)
