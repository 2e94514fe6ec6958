# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Container images assembled from a recipe, without a container engine (OCI image specification 1.1)."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.base import fetch_packages, unpack_base
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import CachedLayer, LayerCache, Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._image.files import copy_sources, hash_sources
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import LayerFile, PathPatterns, unpack
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import (
    Interpreter,
    LockedRequirement,
    additional_requirements,
    controller_architecture,
    fetch_wheels,
    select_requirements,
    unpack_wheels,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import (
    Base,
    ImageConfig,
    PythonPackages,
    Recipe,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR_GZIP,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.sbom import image_sbom, sbom_manifest

CREATED = "1970-01-01T00:00:00Z"  # a real time would change the digest with every build


@dataclass(frozen=True)
class Layer:
    """One layer of an image: base, python, flavour or files."""

    purpose: str
    file: LayerFile


@dataclass(frozen=True)
class PlatformImage:
    """The image for one architecture: manifest and configuration as they are sent."""

    manifest: bytes
    config: bytes
    layers: Sequence[Layer]
    #: Versions by name. Of a base image that others made, nothing is known.
    debian_packages: Mapping[str, str]
    python_packages: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes that a host without any of it transfers."""
        return len(self.manifest) + len(self.config) + sum(layer.file.size for layer in self.layers)


@dataclass(frozen=True)
class Image:
    """An image for several architectures."""

    index: bytes
    platforms: Mapping[str, PlatformImage]
    suite: str = ""
    """Of the Debian packages in it."""

    @property
    def digest(self) -> str:
        """The digest of the index."""
        return sha256_digest(self.index)

    def lock_entry(self, repository: str) -> dict[str, Any]:
        """Return what fleet.lock.yml says of this image."""
        platforms = {
            architecture: {
                "digest": sha256_digest(image.manifest),
                "size": image.size,
                "sbom": sha256_digest(self.sbom(repository, architecture)[0]),
            }
            for architecture, image in self.platforms.items()
        }
        return {"repository": repository, "digest": self.digest, "platforms": platforms}

    def sbom(self, repository: str, architecture: str) -> tuple[bytes, bytes]:
        """Return the bill of material for one architecture: its manifest, and itself."""
        image = self.platforms[architecture]
        bill = image_sbom(
            repository,
            architecture,
            sha256_digest(image.manifest),
            image.debian_packages,
            image.python_packages,
            self.suite,
        )
        return sbom_manifest(bill, image.manifest), bill


class BaseSource(Protocol):
    """Where the lowest layers come from."""

    def identity(self) -> object:
        """Return a JSON value that changes with the content of the layers."""

    def layers(self, architecture: str) -> list[LayerFile]:
        """Return the layers for one architecture, lowest first."""

    def config(self, architecture: str) -> Mapping[str, Any]:
        """Return the image configuration that is built upon."""

    def packages(self, architecture: str) -> Mapping[str, str]:
        """Return the versions of what is in the layers, as far as known."""


class Assembly:
    """One recipe on its way to an image; use it inside ``with cache.locked()``.

    Parameters
    ----------
    source_root : Path
        Where the recipe's relative paths begin.
    upstream : BaseSource or None
        What to build upon instead of the recipe's Debian packages.
    work : Path
        An empty directory for this assembly.
    flavours : sequence of Path
        Further locked requirements; each makes one more layer, of what the layers below have not.
    """

    def __init__(
        self,
        recipe: Recipe,
        source_root: Path,
        cache: LayerCache,
        upstream: BaseSource | None,
        work: Path,
        flavours: Sequence[Path] = (),
    ) -> None:
        self._recipe = recipe
        self._source_root = source_root
        self._cache = cache
        self._work = work
        self._flavours = flavours
        if flavours and recipe.python is None:
            raise FleetError(
                "An image without Python gets no Python packages",
                where="recipe.python",
                remedy="leave requirements out, or add python to the recipe",
            )
        self._known_interpreter: Interpreter | None = None
        self._interpreter_lock = threading.Lock()
        self._base: BaseSource
        if upstream is not None:
            self._base = upstream
        elif recipe.base is not None:
            self._base = _DebianBase(recipe.base, recipe.python, cache, self._interpreter)
        else:
            raise FleetError(
                "The image has nothing to build upon",
                where="recipe.base",
                remedy="list Debian packages there, or name a base_image",
            )

    def image(self, architectures: Sequence[str]) -> Image:
        """Build, or find in the cache, the image for these architectures.

        Raise FleetError for whatever stands in the way, NotBuiltError if the cache may not build.
        """
        hashes = hash_sources(self._recipe.files, self._source_root)  # says what is missing before anything is fetched
        names = sorted(set(architectures))
        with ThreadPoolExecutor() as pool:
            files = pool.submit(self._files, hashes)
            platforms = dict(zip(names, pool.map(lambda name: self._platform(name, files), names), strict=True))
        manifests = [
            descriptor(IMAGE_MANIFEST, image.manifest, platform={"architecture": architecture, "os": "linux"})
            for architecture, image in platforms.items()
        ]
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests}
        suite = self._recipe.base.suite if isinstance(self._base, _DebianBase) and self._recipe.base else ""
        return Image(canonical_json(index), platforms, suite)

    def _platform(self, architecture: str, files: Future[CachedLayer | None]) -> PlatformImage:
        layers = [Layer("base", file) for file in self._base.layers(architecture)]
        debian = self._base.packages(architecture)
        distributions: dict[str, str] = {}
        if self._recipe.python:
            wheels = self._wheels(self._recipe.python, architecture)
            layers.append(Layer("python", wheels.file))
            distributions.update(wheels.packages)
            for path in self._flavours:
                flavour = self._flavour(self._recipe.python, path, architecture, distributions)
                layers.append(Layer("flavour", flavour.file))
                distributions.update(flavour.packages)
        application = files.result()
        if application:
            layers.append(Layer("files", application.file))
        config = _image_config(self._recipe.config, architecture, layers, self._base.config(architecture))
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor(IMAGE_CONFIG, config),
            "layers": [descriptor(LAYER_TAR_GZIP, digest=layer.file.digest, size=layer.file.size) for layer in layers],
        }
        return PlatformImage(canonical_json(manifest), config, layers, debian, distributions)

    def _wheels(self, python: PythonPackages, architecture: str) -> CachedLayer:
        path = self._source_root / python.requirements
        lock = _read_lock(path, "give their path below source_root as recipe.python.requirements")

        def make(work: Path) -> Tree:
            interpreter = self._interpreter()
            requirements = select_requirements(
                lock,
                str(path),
                full_version=interpreter.full_version,
                architecture=architecture,
                exclude=python.exclude,
            )
            return _python_tree(interpreter, requirements, python, architecture, work)

        inputs = {
            "purpose": "python",
            "architecture": architecture,
            "python": asdict(python),
            "lock": sha256_digest(lock.encode()),
            "base": self._base.identity(),
        }
        return self._cache.layer(inputs, make)

    def _flavour(self, python: PythonPackages, path: Path, architecture: str, below: Mapping[str, str]) -> CachedLayer:
        """Return the layer of what the lock file `path` adds to the distributions `below`."""
        lock = _read_lock(path, "correct requirements")

        def make(work: Path) -> Tree:
            interpreter = self._interpreter()
            requirements = additional_requirements(
                select_requirements(
                    lock, str(path), full_version=interpreter.full_version, architecture=architecture, exclude=()
                ),
                below,
                str(path),
            )
            added = replace(python, requirements=str(path))
            return _python_tree(interpreter, requirements, added, architecture, work)

        inputs = {
            "purpose": "flavour",
            "architecture": architecture,
            "python": {key: value for key, value in asdict(python).items() if key in ("version", "target", "remove")},
            "lock": sha256_digest(lock.encode()),
            "below": dict(below),
            "base": self._base.identity(),
        }
        return self._cache.layer(inputs, make)

    def _files(self, hashes: object) -> CachedLayer | None:
        files = self._recipe.files
        python = self._recipe.python
        if not files:
            return None

        def make(work: Path) -> Tree:
            root = work / "root"
            copy_sources(files, self._source_root, root)
            if python:
                self._interpreter().compile(root, [item.target.lstrip("/") for item in files])
            return Tree(root)

        inputs = {
            "purpose": "files",
            "files": hashes,
            # Bytecode depends on the Python that makes it; plain files on nothing else.
            "base": self._base.identity() if python else None,
        }
        return self._cache.layer(inputs, make)

    def _interpreter(self) -> Interpreter:
        """Return the Python of the image for this machine's architecture, unpacked for this assembly only."""
        with self._interpreter_lock:
            if self._known_interpreter is None:
                python = self._recipe.python
                if python is None:
                    raise ValueError("a recipe without Python has no interpreter")
                root = self._work / "interpreter"
                root.mkdir()
                for layer in self._base.layers(controller_architecture()):
                    with tarfile.open(layer.path, "r:gz") as archive:
                        unpack(archive, root)
                self._known_interpreter = Interpreter(root, python.version)
            return self._known_interpreter


class _DebianBase:
    """The base layer that a recipe makes of Debian packages, with bytecode if the image is for Python."""

    def __init__(
        self, base: Base, python: PythonPackages | None, cache: LayerCache, interpreter: Callable[[], Interpreter]
    ) -> None:
        self._base = base
        self._python_version = python.version if python else None
        self._cache = cache
        self._interpreter = interpreter

    def identity(self) -> object:
        return {"base": asdict(self._base), "python": self._python_version}

    def layers(self, architecture: str) -> list[LayerFile]:
        return [self._layer(architecture).file]

    def config(self, architecture: str) -> Mapping[str, Any]:
        return {}

    def packages(self, architecture: str) -> Mapping[str, str]:
        return self._layer(architecture).packages

    def _layer(self, architecture: str) -> CachedLayer:
        def make(work: Path) -> Tree:
            root = work / "root"
            packages = fetch_packages(self._base, architecture, work / "packages")
            unpack_base(self._base, packages, root)
            if self._python_version:
                native = architecture == controller_architecture()
                interpreter = Interpreter(root, self._python_version) if native else self._interpreter()
                interpreter.compile(root, [interpreter.standard_library])
            return Tree(root, {package.name: package.version for package in packages})

        inputs = {"purpose": "base", "architecture": architecture, "identity": self.identity()}
        return self._cache.layer(inputs, make)


def _read_lock(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            "The locked requirements cannot be read", where=str(path), seen=str(error), remedy=remedy
        ) from error


def _python_tree(
    interpreter: Interpreter,
    requirements: list[LockedRequirement],
    python: PythonPackages,
    architecture: str,
    work: Path,
) -> Tree:
    """Fetch the wheels of `requirements` and unpack them into `work` with their bytecode."""
    root = work / "root"
    wheels = fetch_wheels(requirements, python, architecture, work / "wheels") if requirements else []
    unpack_wheels(wheels, root / python.target.lstrip("/"), PathPatterns(python.remove))
    interpreter.compile(root, [python.target.lstrip("/")])
    return Tree(root, {item.name: item.version for item in requirements})


def _image_config(
    config: ImageConfig, architecture: str, layers: Sequence[Layer], upstream: Mapping[str, Any]
) -> bytes:
    """Return the image configuration; environment and labels add to those of the image that is built upon."""
    inherited = upstream.get("config") or {}
    environment = dict(item.partition("=")[::2] for item in inherited.get("Env") or [])
    environment.update(config.environment)
    execution = {
        "User": config.user,
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.command),
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Labels": {**(inherited.get("Labels") or {}), **config.labels},
        "WorkingDir": config.working_directory,
    }
    history = [{"created": CREATED, "created_by": f"edgeml.fleet.oci_image: {layer.purpose}"} for layer in layers]
    return canonical_json(
        {
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {key: value for key, value in execution.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [layer.file.diff_id for layer in layers]},
            "history": history,
        }
    )
