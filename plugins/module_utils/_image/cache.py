# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers that were built before, found again by everything that went into them.

``blobs/<hex>`` holds content by digest, ``layers/<key>.json`` says which blob a build gave, ``work/`` is where builds
happen. A layer's JSON appears last and in one step, so an interrupted build leaves nothing that is taken for a result.
``roots/`` holds unpacked images, ``trials/`` the names of what has passed in them (_trial/trial.py).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import LayerFile, write_layer
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest

# Part of every key: raise it when the same inputs give other bytes than before.
LAYER_FORMAT = 2


class NotBuiltError(Exception):
    """A layer is not in the cache and was not to be built (check mode)."""


@dataclass(frozen=True)
class Tree:
    """What a build gives: the directory whose content is the layer, and versions worth knowing, by package name."""

    root: Path
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class CachedLayer:
    """A layer and the packages in it."""

    file: LayerFile
    packages: Mapping[str, str]


class LayerCache:
    """The cache in `directory`; use it inside ``with cache.locked()``, there from several threads if you like.

    Parameters
    ----------
    rebuild : bool
        Build each layer once more and replace what is cached.
    build : bool
        Whether missing layers may be built; NotBuiltError otherwise.
    """

    def __init__(self, directory: Path, *, rebuild: bool = False, build: bool = True) -> None:
        self.blobs = directory / "blobs"
        self.partial = directory / "partial"
        self.roots = directory / "roots"
        self.trials = directory / "trials"
        self._layers = directory / "layers"
        self._work = directory / "work"
        self._lock = directory / "lock"
        self._rebuild = rebuild
        self._build = build
        self._built: set[str] = set()
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for this process alone, waiting for another that does; clear what a killed one left."""
        try:
            for directory in (self.blobs, self.roots, self.trials, self._layers, self._work):
                directory.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a")
        except OSError as error:
            raise FleetError(
                "The image cache cannot be used",
                where=str(self._lock.parent),
                seen=str(error),
                remedy="give a directory that this user may write to",
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for leftover in self._work.iterdir():
                remove_tree(leftover)
            yield

    @contextmanager
    def work_directory(self) -> Iterator[Path]:
        """A new directory that is gone afterwards."""
        path = Path(tempfile.mkdtemp(dir=self._work))
        try:
            yield path
        finally:
            remove_tree(path)

    def layer(self, inputs: Mapping[str, Any], make: Callable[[Path], Tree]) -> CachedLayer:
        """Return the layer that `inputs` (JSON values) identify; `make` builds its tree in an empty directory."""
        key = sha256_digest(canonical_json({"format": LAYER_FORMAT, **inputs})).removeprefix("sha256:")
        with self._key_locks[key]:
            return self._found_or_built(key, make)

    def _found_or_built(self, key: str, make: Callable[[Path], Tree]) -> CachedLayer:
        record = self._layers / f"{key}.json"
        if not self._rebuild or key in self._built:
            found = self._find(record)
            if found:
                return found
        if not self._build:
            raise NotBuiltError
        with self.work_directory() as work:
            try:
                tree = make(work)
                file = write_layer(tree.root, work / "layer")
                blob = self.blobs / file.digest.removeprefix("sha256:")
                file.path.replace(blob)
                layer = CachedLayer(dataclasses.replace(file, path=blob), tree.packages)
                self._record(record, layer, work)
            except OSError as error:
                raise FleetError(
                    "A layer cannot be built",
                    where=str(self._work),
                    seen=str(error),
                    remedy="check the free space and the rights of the cache directory",
                ) from error
        self._built.add(key)
        return layer

    def _find(self, record: Path) -> CachedLayer | None:
        try:
            values = json.loads(record.read_bytes())
            packages = values.pop("packages")
            file = LayerFile(path=self.blobs / values["digest"].removeprefix("sha256:"), **values)
            return CachedLayer(file, packages) if file.path.stat().st_size == file.size else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _record(self, record: Path, layer: CachedLayer, work: Path) -> None:
        values = {**dataclasses.asdict(layer.file), "packages": dict(layer.packages)}
        del values["path"]
        written = work / "record"
        with written.open("wb") as file:
            file.write(canonical_json(values))
            file.flush()
            os.fsync(file.fileno())
        written.replace(record)


def remove_tree(path: Path) -> None:
    """Delete a tree, also where its directories deny it."""
    for here, names, _files in os.walk(path):
        for name in names:
            directory = Path(here, name)
            if not directory.is_symlink():
                directory.chmod(0o700)
    shutil.rmtree(path)
