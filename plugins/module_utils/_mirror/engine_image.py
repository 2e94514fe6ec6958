# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image of a mirror's content for the engine of the mirror's own host, which no registry serves yet."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, loaded_name
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import file_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest


def load_image(root: Path, image: str, engine: DockerEngine) -> None:
    """Give the engine `image`, ``REGISTRY/REPOSITORY@DIGEST``, from the tree below `root`.

    The engine knows it by `loaded_name` afterwards. Every engine takes this form of archive, and layers as they are in
    a registry. Raises FleetError if the tree does not hold the image whole.
    """
    name, _separator, digest = image.partition("@")
    repository = name.partition("/")[2]
    tree = Tree(root)
    manifest = json.loads(_manifest(tree, repository, digest))
    config, layers = manifest["config"]["digest"], [layer["digest"] for layer in manifest["layers"]]
    for blob in (config, *layers):
        _check(tree.blob(blob), blob)
    described = [{"Config": _file(config), "RepoTags": [loaded_name(image)], "Layers": list(map(_file, layers))}]
    with _work_directory(root) as directory:
        archive = directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            for blob in dict.fromkeys((config, *layers)):
                tar.add(tree.blob(blob), _file(blob))
            data = canonical_json(described)
            entry = tarfile.TarInfo("manifest.json")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        engine.load(archive)


@contextlib.contextmanager
def _work_directory(root: Path) -> Iterator[Path]:
    """Give a directory below `root`, to one process at a time, and remove what a killed one has left."""
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in root.glob(".load-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=root, prefix=".load-") as directory:
            yield Path(directory)
    finally:
        os.close(lock)


def _file(digest: str) -> str:
    return digest.partition(":")[2]


def _manifest(tree: Tree, repository: str, digest: str) -> bytes:
    for path in (tree.current / "v2" / repository / "manifests").glob(f"{digest}.*-manifest"):
        data = path.read_bytes()
        if sha256_digest(data) == digest:
            return data
    raise _lacking(tree.current, f"{repository}@{digest}")


def _check(path: Path, digest: str) -> None:
    try:
        whole = file_digest(path) == digest
    except OSError:
        whole = False
    if not whole:
        raise _lacking(path, digest)


def _lacking(place: Path, what: str) -> FleetError:
    return FleetError(
        "The mirror's content does not hold the image of its own server whole",
        where=str(place),
        seen=what,
        remedy="run the playbook edgeml.fleet.mirror with -e edgeml_force=true, which reads and heals all content",
    )
