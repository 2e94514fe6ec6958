# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model directory as OCI content: one tar blob under a ModelPack manifest and under an image index."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    MODEL_CONFIG,
    MODEL_FILEPATH,
    MODEL_MANIFEST,
    MODEL_WEIGHT_TAR,
    canonical_json,
    check_repository,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._registry import Registry

DESCRIPTION = "model.json"
SERVING = "serving.json"
#: Platform of the Open Inference Protocol to format of ModelPack.
FORMATS = {"onnxruntime_onnx": "onnx", "python": "python", "pipeline": "pipeline"}
#: The file that a platform loads when none is named.
DEFAULT_FILES = {"onnxruntime_onnx": "model.onnx", "python": "model.py", "pipeline": SERVING}

_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_VERSION = re.compile(r"(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Model:
    """A model on the controller's disk.

    Attributes
    ----------
    name, version : str
        As clients ask for them in the Open Inference Protocol; the version has three parts.
    platform : str
        One of FORMATS.
    source : pathlib.Path
        Directory whose whole content becomes the model.
    file : str
        The file in `source` that the platform loads.
    """

    name: str
    version: str
    platform: str
    source: Path
    file: str


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
    description = canonical_json(
        {"name": model.name, "version": model.version, "platform": model.platform, "file": model.file}
    )
    entries: dict[str, Path | bytes] = dict(_files(model.source))
    if DESCRIPTION in entries:
        raise FleetError(
            "The model directory holds a file that this module writes",
            where=str(model.source / DESCRIPTION),
            remedy="remove it; name, version, platform and file are the module's options",
        )
    found = entries.get(model.file)
    if not isinstance(found, Path) or not found.is_file():
        raise FleetError(
            "The model directory lacks the model's file",
            where=str(model.source / model.file),
            seen="the directory holds " + (", ".join(sorted(entries)[:20]) or "nothing"),
            remedy="correct source or file",
        )
    if model.platform != "onnxruntime_onnx" and SERVING not in entries:
        raise FleetError(
            f"A model of platform {model.platform} declares its inputs and outputs in a file {SERVING}",
            where=str(model.source / SERVING),
            remedy="add it to the model's directory",
        )
    entries[DESCRIPTION] = description
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="strict") as tar:
        for name, content in sorted(entries.items()):
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.mode, member.size = 0o644, len(content)
                tar.addfile(member, io.BytesIO(content))
            elif content.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.mode, member.size = 0o644, content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(member, file)


def publish_model(
    model: Model, architectures: Sequence[str], registry: Registry, repository: str, *, send: bool
) -> tuple[bool, dict[str, Any], dict[str, str | None]]:
    """Make the registry hold `model` in `repository`, tagged ``<version>`` and ``<version>-image``.

    Returns whether anything was (`send`) or would be sent, the model's entry of the lock, and the digests under the
    two tags before. Raises FleetError.
    """
    _check(model)
    check_repository(repository, "repository")
    sink = _HashingSink()
    write_model_tar(model, sink)
    blob_digest, blob_size = "sha256:" + sink.sha256.hexdigest(), sink.size

    configs: dict[str, bytes] = {}
    children: dict[str, bytes] = {}
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
        child = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": IMAGE_MANIFEST,
                "config": descriptor(IMAGE_CONFIG, config),
                "layers": [descriptor(LAYER_TAR, digest=blob_digest, size=blob_size)],
            }
        )
        configs[sha256_digest(config)] = config
        children[sha256_digest(child)] = child
        platforms[architecture] = {"digest": sha256_digest(child), "size": len(child) + len(config) + blob_size}
        platform = {"architecture": architecture, "os": "linux"}
        manifests.append(descriptor(IMAGE_MANIFEST, child, platform=platform))
    index = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests})

    config = canonical_json(
        {
            "descriptor": {"name": model.name, "version": model.version},
            "config": {"format": FORMATS[model.platform]},
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
    entry = {
        "version": model.version,
        "repository": repository,
        "digest": sha256_digest(manifest),
        "index": sha256_digest(index),
        "platforms": platforms,
        "blob": {"digest": blob_digest, "size": blob_size},
    }

    tagged = {model.version: (manifest, IMAGE_MANIFEST), f"{model.version}-image": (index, IMAGE_INDEX)}
    before = {tag: registry.manifest_digest(repository, tag) for tag in tagged}
    blob_missing = not registry.has_blob(repository, blob_digest)
    missing_configs = {digest: data for digest, data in configs.items() if not registry.has_blob(repository, digest)}
    missing_children = {
        digest: data for digest, data in children.items() if not registry.has_manifest(repository, digest)
    }
    other_tags = [tag for tag, (data, _) in tagged.items() if before[tag] != sha256_digest(data)]
    changed = bool(blob_missing or missing_configs or missing_children or other_tags)
    if send:
        if blob_missing:
            _push_tar(model, registry, repository, blob_digest)
        for digest, data in missing_configs.items():
            registry.push_blob(repository, data, digest)
        # A tag appears last, when all that it leads to is there.
        for digest, data in missing_children.items():
            registry.push_manifest(repository, digest, data, IMAGE_MANIFEST)
        for tag in other_tags:
            registry.push_manifest(repository, tag, *tagged[tag])
    return changed, entry, before


class _HashingSink(io.RawIOBase):
    """Takes bytes, keeps their number and SHA-256."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


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
