# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model directory as OCI content: one tar blob under a ModelPack manifest and under an image index."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import (
    GOLDEN,
    Model,
    check_model,
    model_files,
    write_model_tar,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import HashingSink
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    MODEL_CONFIG,
    MODEL_FILEPATH,
    MODEL_MANIFEST,
    MODEL_WEIGHT_TAR,
    check_repository,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import attach, is_attached
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.sbom import model_sbom, sbom_manifest

#: Platform of the Open Inference Protocol to format of ModelPack; of any other platform, its own name.
FORMATS = {"onnxruntime_onnx": "onnx"}


@dataclass(frozen=True)
class ArtifactContent:
    """What a registry holds of a model beside its tar, by digest: configurations, image manifests; and by tag.

    `sbom` is the bill of material: its manifest, and itself.
    """

    configs: Mapping[str, bytes]
    images: Mapping[str, bytes]
    tagged: Mapping[str, tuple[bytes, str]]
    sbom: tuple[bytes, bytes]


def describe_model(
    model: Model, architectures: Sequence[str], repository: str
) -> tuple[dict[str, Any], ArtifactContent]:
    """Return the model's entry of the lock, and all that a registry holds of it but the tar. Raise FleetError."""
    check_model(model)
    check_repository(repository, "repository")
    sink = HashingSink()
    write_model_tar(model, sink)
    blob_digest, blob_size = "sha256:" + sink.sha256.hexdigest(), sink.size

    configs: dict[str, bytes] = {}
    images: dict[str, bytes] = {}
    platforms = {}
    manifests = []
    for architecture in architectures:
        config = canonical_json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [blob_digest]},
            }
        )
        image = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": IMAGE_MANIFEST,
                "config": descriptor(IMAGE_CONFIG, config),
                "layers": [descriptor(LAYER_TAR, digest=blob_digest, size=blob_size)],
            }
        )
        configs[sha256_digest(config)] = config
        images[sha256_digest(image)] = image
        platforms[architecture] = {"digest": sha256_digest(image), "size": len(image) + len(config) + blob_size}
        platform = {"architecture": architecture, "os": "linux"}
        manifests.append(descriptor(IMAGE_MANIFEST, image, platform=platform))
    index = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests})

    config = canonical_json(
        {
            "descriptor": {"name": model.name, "version": model.version},
            "config": {"format": FORMATS.get(model.platform, model.platform)},
            "modelfs": {"type": "layers", "diffIds": [blob_digest]},
        }
    )
    configs[sha256_digest(config)] = config
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": MODEL_MANIFEST,
            "config": descriptor(MODEL_CONFIG, config),
            "layers": [
                descriptor(
                    MODEL_WEIGHT_TAR, digest=blob_digest, size=blob_size, annotations={MODEL_FILEPATH: model.name}
                )
            ],
        }
    )
    bill = model_sbom(model.name, model.version, blob_digest)
    sbom = sbom_manifest(bill, manifest)
    cases = [name for name in model_files(model) if PurePosixPath(name).match(f"{GOLDEN}/*.json")]
    entry = {
        "repository": repository,
        "digest": sha256_digest(manifest),
        "index": sha256_digest(index),
        "platforms": platforms,
        "blob": {"digest": blob_digest, "size": blob_size},
        "golden_cases": len(cases),
        "sbom": sha256_digest(sbom),
    }
    tagged = {model.tag: (manifest, IMAGE_MANIFEST), f"{model.tag}-image": (index, IMAGE_INDEX)}
    return entry, ArtifactContent(configs, images, tagged, (sbom, bill))


def push_model(
    model: Model, entry: Mapping[str, Any], content: ArtifactContent, registry: Registry, *, send: bool
) -> tuple[bool, dict[str, str | None]]:
    """Make the registry hold what `describe_model` returned for `model`, tagged ``<tag>`` and ``<tag>-image``.

    Returns whether anything was (`send`) or would be sent, and the digests under the two tags before. Raises
    FleetError.
    """
    repository = entry["repository"]
    blob_digest = entry["blob"]["digest"]
    before = {tag: registry.manifest_digest(repository, tag) for tag in content.tagged}
    blob_missing = not registry.has_blob(repository, blob_digest)
    configs = {digest: data for digest, data in content.configs.items() if not registry.has_blob(repository, digest)}
    images = {digest: data for digest, data in content.images.items() if not registry.has_manifest(repository, digest)}
    tags = [tag for tag, (data, _type) in content.tagged.items() if before[tag] != sha256_digest(data)]
    described = is_attached(registry, repository, content.sbom[0])
    if send:
        if blob_missing:
            _push_tar(model, registry, repository, blob_digest)
        for digest, data in configs.items():
            registry.push_blob(repository, data, digest)
        # A tag appears last, when all that it leads to is there.
        for digest, data in images.items():
            registry.push_manifest(repository, digest, data, IMAGE_MANIFEST)
        for tag in tags:
            registry.push_manifest(repository, tag, *content.tagged[tag])
        if not described:
            attach(registry, repository, *content.sbom)
    return bool(blob_missing or configs or images or tags or not described), before


def _push_tar(model: Model, registry: Registry, repository: str, digest: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="model-", suffix=".tar") as file:
        write_model_tar(model, file)
        file.flush()
        file.seek(0)
        seen = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if seen != digest:
            raise FleetError(
                "The model's files changed while they were read",
                where=str(model.source),
                remedy="run again when nothing writes to them",
            )
        registry.push_blob(repository, Path(file.name), digest)
