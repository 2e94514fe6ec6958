# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the files of an image are on this host what its digests say, and how a damaged one is written anew.

The engine unpacks layers and never looks at them again. Beside each it keeps what else was in the layer's tar
(``tar-split.json.gz``), so that the tar can be put together again and compared with the layer's digest, without the
engine, without writing, and with a priority of our own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine

#: Where the files of a layer are, below the engine's directory, by storage driver.
DIRECTORIES = {"overlay2": "overlay2/{}/diff", "vfs": "vfs/dir/{}", "fuse-overlayfs": "fuse-overlayfs/{}/diff"}
_BLOCK = 1 << 20
_FILE, _SEGMENT = 1, 2  # types of entries of tar-split


@dataclass(frozen=True)
class Layer:
    """One layer on the disk: its place in the image, digest of its tar, files, and the description of the tar."""

    index: int
    diff_id: str
    files: Path
    split: Path


def layers(engine: DockerEngine, image: str) -> list[Layer] | None:
    """Return the layers of an image, lowest first; None if the engine keeps them in a form that we cannot check."""
    found = engine.image(image)
    information = engine.information()
    driver, root = str(information.get("Driver")), Path(str(information.get("DockerRootDir")))
    if found is None or driver not in DIRECTORIES:
        return None
    result = []
    chain = ""
    for index, diff_id in enumerate(found["RootFS"]["Layers"]):
        chain = diff_id if not chain else "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
        record = root / "image" / driver / "layerdb" / "sha256" / chain.partition(":")[2]
        try:
            name = (record / "cache-id").read_text().strip()
        except OSError:
            return None
        split = record / "tar-split.json.gz"
        result.append(Layer(index, diff_id, root / DIRECTORIES[driver].format(name), split))
    return result


def is_intact(layer: Layer) -> bool:
    """Return whether the files of a layer, put together again, have the layer's digest."""
    sha256 = hashlib.sha256()
    try:
        for entry in _entries(layer):
            if entry["type"] == _SEGMENT:
                sha256.update(base64.b64decode(entry.get("payload") or ""))
            elif entry.get("size"):
                with (layer.files / _name(entry)).open("rb") as file:
                    while block := file.read(_BLOCK):
                        sha256.update(block)
    except (OSError, ValueError):
        return False  # a file that is gone, cut short or cannot be read is as bad
    return f"sha256:{sha256.hexdigest()}" == layer.diff_id


def restore(layer: Layer, archive: Path) -> list[str]:
    """Write the files anew that are not those of the layer's tar (`archive`, gzip), in place; return their names.

    Their inodes stay, so that running containers see the right bytes at once. Raises FleetError if that is not enough.
    """
    restored = []
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = layer.files / member.name
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or not member.size or not _is_inside(path, layer.files):
                continue
            if not path.is_file() or not _same(content, path):
                content.seek(0)
                with path.open("r+b" if path.exists() else "xb") as file:
                    while block := content.read(_BLOCK):
                        file.write(block)
                    file.truncate()
                    file.flush()
                    os.fsync(file.fileno())
                restored.append(member.name)
    if not is_intact(layer):
        raise FleetError(
            "A layer of the image is damaged and cannot be restored",
            where=str(layer.files),
            seen=f"written anew: {', '.join(restored) or 'nothing'}",
            remedy="look at the disk (smartctl, dmesg); remove the runtime from this host with the playbook "
            "edgeml.fleet.remove, and bring it back with edgeml.fleet.site",
        )
    return restored


def _entries(layer: Layer) -> Iterator[Mapping[str, Any]]:
    with gzip.open(layer.split, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _name(entry: Mapping[str, Any]) -> str:
    raw = entry.get("name_raw")
    return os.fsdecode(base64.b64decode(raw)) if raw else str(entry["name"])


def _is_inside(path: Path, root: Path) -> bool:
    real = Path(os.path.realpath(root))
    return real in Path(os.path.realpath(path)).parents


def _same(content: IO[bytes], path: Path) -> bool:
    try:
        with path.open("rb") as file:
            while True:
                block = content.read(_BLOCK)
                if block != file.read(len(block) or 1):
                    return False
                if not block:
                    return True
    except OSError:
        return False


def damaged(engine: DockerEngine, image: str) -> Sequence[Layer]:
    """Return the layers of an image that are not what their digests say; none if that cannot be told."""
    return [layer for layer in layers(engine, image) or () if not is_intact(layer)]
