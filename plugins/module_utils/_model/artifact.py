# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model directory as OCI content: one tar blob under a ModelPack manifest and under an image index."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._model.external_data import external_files
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import HashingSink, write_tar
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

DESCRIPTION = "model.json"
SERVING = "serving.json"
GOLDEN = "golden"
#: Platform of the Open Inference Protocol to format of ModelPack; of any other platform, its own name.
FORMATS = {"onnxruntime_onnx": "onnx"}
#: Platforms of the collection's own runtime, and the file that they load when none is named.
DEFAULT_FILES = {"onnxruntime_onnx": "model.onnx", "python": "model.py", "pipeline": SERVING}

_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_VERSION = re.compile(r"(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Variant:
    """One form of a model, such as one of less precision.

    Attributes
    ----------
    name : str
        Ends the tag of the artifact.
    file : str
        The file in the source that becomes ``model.onnx``, or whatever its own suffix is. Empty if the source holds
        this variant alone.
    others : tuple of str
        Files of the other variants, which are left out.
    """

    name: str
    file: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model on the controller's disk.

    Attributes
    ----------
    name, version : str
        As clients ask for them in the Open Inference Protocol; the version has three parts.
    platform : str
        One of DEFAULT_FILES, or what another server takes.
    source : pathlib.Path
        Directory whose whole content becomes the model.
    file : str
        The file that the platform loads; empty if another server finds it by itself.
    variant : Variant or None
        Which of several forms in `source` it is.
    golden : pathlib.Path or None
        Directory that becomes ``golden`` in the model.
    """

    name: str
    version: str
    platform: str
    source: Path
    file: str
    variant: Variant | None = None
    golden: Path | None = None

    @property
    def tag(self) -> str:
        """The tag of the artifact."""
        return f"{self.version}-{self.variant.name}" if self.variant else self.version


def check_version(version: object) -> str:
    """Return a three-part semantic version; raise FleetError for anything else, numbers included."""
    if isinstance(version, str) and _VERSION.fullmatch(version):
        return version
    seen = f"{version!r}" if isinstance(version, str) else f"the number {version!r}"
    raise FleetError(
        "Not a model version",
        where="version",
        seen=seen,
        remedy='give three numbers as quoted text, for example "1.4.0"; YAML reads an unquoted 1.4 as a number',
    )


def write_model_tar(model: Model, output: IO[bytes] | io.RawIOBase) -> None:
    """Write the model's files and its model.json as an uncompressed tar that depends on nothing but their content.

    Entries are sorted and carry no owner and no time; modes are 0644 and 0755. Raises FleetError for anything that is
    not a regular file or directory.
    """
    entries: dict[str, Path | bytes] = dict(model_files(model))
    description = {"name": model.name, "version": model.version, "platform": model.platform}
    if model.file:
        description["file"] = model.file
    if DESCRIPTION in entries:
        raise FleetError(
            "The model directory holds a file that this module writes",
            where=str(model.source / DESCRIPTION),
            remedy="remove it; name, version, platform and file are the module's options",
        )
    found = entries.get(model.file)
    if (model.file or model.platform in DEFAULT_FILES or not entries) and not (
        isinstance(found, Path) and found.is_file()
    ):
        raise FleetError(
            "The model directory lacks the model's file",
            where=str(model.source / model.file),
            seen="the directory holds " + (", ".join(sorted(entries)[:20]) or "nothing"),
            remedy="correct source or file",
        )
    if model.platform in ("python", "pipeline") and SERVING not in entries:
        raise FleetError(
            f"A model of platform {model.platform} declares its inputs and outputs in a file {SERVING}",
            where=str(model.source / SERVING),
            remedy="add it to the model's directory",
        )
    entries[DESCRIPTION] = canonical_json(description)
    write_tar(entries, output)


def model_files(model: Model) -> dict[str, Path]:
    """Return the files and directories that make the model, by their name in it. Raise FleetError."""
    entries = dict(_files(model.source))
    if model.golden:
        if any(PurePosixPath(name).parts[0] == GOLDEN for name in entries):
            raise FleetError(
                "The model has two directories of golden cases",
                where=str(model.source / GOLDEN),
                seen=f"the other one is {model.golden}",
                remedy="remove one of them",
            )
        entries |= {GOLDEN: model.golden, **{f"{GOLDEN}/{name}": path for name, path in _files(model.golden)}}
    if model.variant and model.variant.file:
        return _of_variant(entries, model.variant, model.source)
    _weights(entries, model.file, model.source)
    return entries


def _of_variant(entries: Mapping[str, Path], variant: Variant, source: Path) -> dict[str, Path]:
    """Return the files without those of other variants, and the variant's own under its common name."""
    own = entries.get(variant.file)
    if own is None or not own.is_file():
        raise FleetError(
            f"The file of variant {variant.name} is missing",
            where=str(source / variant.file),
            seen="the directory holds " + (", ".join(sorted(entries)[:20]) or "nothing"),
            remedy="correct the variant's file",
        )
    weights = _weights(entries, variant.file, source)
    of_others = {
        name for other in variant.others if other in entries for name in _weights(entries, other, source).values()
    }
    away = {variant.file, *variant.others, *weights.values(), *of_others}
    left = {name: path for name, path in entries.items() if name not in away}
    # What is beside the variant's file is beside it under its common name, too.
    left |= {place: entries[name] for place, name in weights.items()}
    common = "model" + PurePosixPath(variant.file).suffix
    if common in left:
        raise FleetError(
            f"Variant {variant.name} takes a name that another file has",
            where=str(source / common),
            seen=f"{variant.file} becomes {common}",
            remedy=f"name {common} as the file of another variant, or rename it",
        )
    for name in away:  # directories that held nothing else
        for directory in PurePosixPath(name).parents:
            if not any(other.startswith(f"{directory}/") for other in left):
                left.pop(str(directory), None)
    return {**left, common: own}


def _weights(entries: Mapping[str, Path], file: str, source: Path) -> dict[str, str]:
    """Return the files of an ONNX file's weights, as it calls them and as the directory does. Raise FleetError."""
    if not file.endswith(".onnx") or file not in entries:
        return {}
    found = {}
    for name in external_files(entries[file]):
        place = PurePosixPath(file).parent / name
        if PurePosixPath(name).is_absolute() or ".." in place.parts or str(place) not in entries:
            raise FleetError(
                "The model's weights are missing",
                where=str(source / file),
                seen=f"it keeps weights in a file {name!r}, which is not beside it",
                remedy="put that file into the model's directory, or save the model with its weights in one file",
            )
        found[str(PurePosixPath(name))] = str(place)
    return found


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
    _check(model)
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


def _check(model: Model) -> None:
    check_version(model.version)
    if not _NAME.fullmatch(model.name):
        raise FleetError(
            "Not a model name",
            where="name",
            seen=repr(model.name),
            remedy="use lower-case letters and digits, with . _ - between them",
        )
    if not model.source.is_dir():
        raise FleetError(
            "The model's directory does not exist",
            where=str(model.source),
            remedy="give the directory that holds the model's files as source",
        )
    if model.golden and not model.golden.is_dir():
        raise FleetError(
            "The directory of golden cases does not exist",
            where=str(model.golden),
            remedy="correct golden",
        )


def _files(source: Path) -> list[tuple[str, Path]]:
    """Return name and path of each file and directory below `source`; raise FleetError for any other kind.

    What Python keeps of modules that were run there is no part of the model.
    """
    found = []
    for path in source.rglob("*"):
        if "__pycache__" in path.relative_to(source).parts:
            continue
        name = path.relative_to(source).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FleetError(
                "A model holds regular files and directories only",
                where=str(path),
                seen="a symbolic link" if path.is_symlink() else "a special file",
                remedy="replace it by a copy of the file, or remove it",
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise FleetError(
                "A file name is not UTF-8",
                where=ascii(str(path)),
                remedy="rename the file",
            ) from error
        found.append((name, path))
    return found
