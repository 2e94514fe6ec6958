# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images and models of a release on this host: fetched, verified and on the disk before they get their names."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import SPARE_BYTES, UNPACK_FACTOR, check_space
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, sync_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._host.image_layers import layers, restore
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import check_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob, holds
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.tls import pair_beside
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import PULLING


def check_release_space(engine: DockerEngine, root: Path, image_size: int, models: Sequence[Model]) -> None:
    """Raise FleetError if an image of `image_size` bytes (as transferred) and `models` do not fit on the disk."""
    needs: dict[int, tuple[Path, int]] = {}
    wanted = [(root, sum(2 * model.size for model in models))]
    if image_size:
        wanted.append((Path(engine.image_directory()), UNPACK_FACTOR * image_size))
    for path, size in wanted:
        device = path.stat().st_dev
        needs[device] = (path, needs.get(device, (path, SPARE_BYTES))[1] + size)
    for path, need in needs.values():
        check_space(path, need)


def mirror_of(image: str, ca_file: str) -> Registry:
    """Return the registry of an image, as the engine asks it: with the certificate that lies beside its authority."""
    return Registry.from_options({"address": image.partition("/")[0], "ca_file": ca_file, **pair_beside(ca_file)})


def stage_image(engine: DockerEngine, staging: Path, image: str) -> None:
    """Pull and make it durable. A marker that outlives a power cut tells that the pull must be done again."""
    marker = staging / f"{PULLING}{image.rpartition(':')[2]}"
    if marker.exists():
        engine.remove_image(image)
    elif engine.has_image(image):
        return
    make_directory(staging)
    marker.touch()
    sync_directory(staging)
    engine.pull(image)
    os.sync()
    marker.unlink()
    sync_directory(staging)


def restore_image(engine: DockerEngine, registry: Registry, staging: Path, image: str, diff_ids: Sequence[str]) -> None:
    """Write those files of an image anew whose layers, by their `diff_ids`, are not what their digests say.

    The engine itself could only pull an image again that no container uses.
    """
    repository = image.partition("/")[2].partition("@")[0]
    manifest = json.loads(registry.get_manifest(repository, image.partition("@")[2])[0])
    for layer in layers(engine, image) or ():
        if layer.diff_id in diff_ids:
            blob = manifest["layers"][layer.index]
            name = blob["digest"].partition(":")[2]
            archive = staging / f"{name}.layer"
            fetch_blob(registry, repository, blob["digest"], blob["size"], archive, staging / f"{name}.part")
            try:
                restore(layer, archive)
            finally:
                archive.unlink()


def bytes_to_fetch(staging: Path, model: Model) -> int:
    """Return how many bytes of a model's tar an earlier, interrupted run has not left in `staging`."""
    if holds(staging / f"{model.directory_name}.tar", model.size):
        return 0
    partial = staging / f"{model.directory_name}.part"
    return model.size - min(partial.stat().st_size if partial.is_file() else 0, model.size)


def stage_model(registry: Registry, staging: Path, models: Path, model: Model) -> int:
    """Fetch a model's tar, verify it, unpack it beside its place and give it its name below `models` last.

    Returns the number of bytes fetched.
    """
    check_digest(model.digest, f"model {model.name}")
    make_directory(staging)
    archive = staging / f"{model.directory_name}.tar"
    partial = staging / f"{model.directory_name}.part"
    fetched = fetch_blob(registry, model.repository, model.digest, model.size, archive, partial)
    unpacked = staging / f"{model.directory_name}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    _unpack(archive, unpacked)
    make_directory(models)
    place, damaged = models / model.directory_name, staging / f"{model.directory_name}.damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    if place.exists():  # a container that has it open keeps it until it goes
        place.rename(damaged)
    unpacked.rename(place)
    sync_directory(models)
    archive.unlink()
    shutil.rmtree(damaged, ignore_errors=True)
    return fetched


def _unpack(archive: Path, target: Path) -> None:
    """Unpack regular files and directories, readable by all, and sync them; refuse whatever leads elsewhere."""
    make_directory(target)
    root = target.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = target / member.name
            real = path.resolve()
            if not (member.isreg() or member.isdir()) or root not in (real, *real.parents):
                raise FleetError(
                    "The model's archive holds something other than files and directories below it",
                    where=str(archive),
                    seen=member.name,
                    remedy="publish the model again with the module edgeml.fleet.model_artifact",
                )
            if member.isdir():
                make_directory(path)
                continue
            make_directory(path.parent)
            content = tar.extractfile(member)
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)  # type: ignore[arg-type]  # a regular file has content
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            sync_directory(path.parent)
