# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release transaction: compare, stage, candidate, gate, switch, commit. It runs on the device.

Whatever ends it (an error, a lost connection, a power cut), the old release serves or the new one does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._content_store import (
    check_space,
    fetch_blob,
    make_directory,
    sync_directory,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._health import ModelCheck, check_model
from ansible_collections.edgeml.fleet.plugins.module_utils._latency import (
    ModelObjective,
    measure_model,
    missed_objective,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import canonical_json, check_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oip import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._registry import Registry

ACTIVE = "edgeml-runtime"
CANDIDATE = "edgeml-runtime-candidate"
PREVIOUS = "edgeml-runtime-previous"
RELEASE_LABEL = "io.edgeml.release"
USER = 65532  # user and group of the runtime's image
CONFIGURATION_FILE = "/etc/edgeml/runtime.json"
SOCKET_DIRECTORY = "/run/edgeml"
CACHE_DIRECTORY = "/var/cache/edgeml"
#: Room that the engine needs for an image, per byte transferred: layers of Python wheels unpack to about 3 times.
UNPACK_FACTOR = 4
SPARE_BYTES = 64 << 20
#: Requests for a latency objective, before the release takes traffic.
GATE_WARMUP = 20
GATE_SAMPLES = 200
GATE_SECONDS = 5.0


@dataclass(frozen=True)
class Model:
    """One model of a release; `digest` and `size` (bytes) are those of its tar blob.

    `options` override how the model's own serving.json has it served.
    """

    name: str
    version: str
    repository: str
    digest: str
    size: int
    golden_cases: int = 0
    p95_ms: float | None = None
    protocol: str = "grpc"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def directory_name(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Desired:
    """What shall run on this host: an image by digest, models by digest, the runtime's configuration."""

    image: str
    image_size: int
    models: tuple[Model, ...]
    configuration: dict[str, Any]
    secrets_directory: str
    memory_mb: int

    def runtime_configuration(self) -> dict[str, Any]:
        """Return the content of the runtime's configuration file."""
        return {
            "cache_directory": CACHE_DIRECTORY,
            **self.configuration,
            "models": [
                {
                    "name": m.name,
                    "version": m.version,
                    "digest": m.digest,
                    "path": f"/models/{m.directory_name}",
                    "options": m.options,
                }
                for m in self.models
            ],
        }

    def release_id(self) -> str:
        """Return the digest of all that makes this release, secrets by their hash."""
        secrets = {}
        if self.secrets_directory:
            for path in sorted(Path(self.secrets_directory).glob("*")):
                secrets[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        intent = {
            "image": self.image,
            "configuration": self.runtime_configuration(),
            "secrets": secrets,
            "memory_mb": self.memory_mb,
        }
        return hashlib.sha256(canonical_json(intent)).hexdigest()


class Release:
    """Brings a host to a desired release below `root` (``/var/lib/edgeml``)."""

    def __init__(self, engine: DockerEngine, root: Path, ca_file: str, start_timeout: float) -> None:
        self.engine = engine
        self.root = root
        self.ca_file = ca_file
        self.start_timeout = start_timeout
        self.models = root / "models"
        self.releases = root / "releases"
        self.cache = root / "cache"
        self.state_file = root / "state.json"

    # -- compare ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the committed state: {} or {"active": {"id", "image", "models"}, "previous": the same or None}."""
        try:
            return dict(json.loads(self.state_file.read_text()))
        except FileNotFoundError:
            return {}

    def is_active(self, desired: Desired, release_id: str) -> bool:
        """Return whether exactly this release is committed, runs and says that it is ready."""
        container = self.engine.container(ACTIVE)
        return (
            self.state().get("active", {}).get("id") == release_id
            and container is not None
            and container["Config"]["Labels"].get(RELEASE_LABEL) == release_id
            and container["State"]["Running"]
            and container["HostConfig"]["RestartPolicy"]["Name"] == "always"
            and all((self.models / model.directory_name).is_dir() for model in desired.models)
            and self._ready(self.root / "run" / "active")
        )

    def converge(self, desired: Desired, check_mode: bool) -> dict[str, Any]:
        """Make `desired` the active release; return {"changed", "release", "diff", "steps"}."""
        release_id = desired.release_id()
        before = self.state().get("active")
        after = _summary(desired, release_id)
        result: dict[str, Any] = {
            "changed": True,
            "release": after,
            "diff": {"before": before or {}, "after": after},
            "steps": [],
        }
        if self.is_active(desired, release_id):
            return {**result, "changed": False, "diff": {"before": after, "after": after}}
        self._check_ports(desired)
        missing_image = not self.engine.has_image(desired.image)
        missing_models = [m for m in desired.models if not (self.models / m.directory_name).is_dir()]
        if check_mode:
            if missing_image:
                result["steps"].append(f"pull {desired.image}")
            result["steps"] += [f"fetch model {m.name} {m.version}" for m in missing_models]
            result["steps"].append(f"switch to release {release_id[:12]}")
            return result
        with self._lock():
            self._check_space(desired, missing_image, missing_models)
            self._stage_image(desired.image)
            for model in missing_models:
                self._stage_model(desired.image.split("/")[0], model)
            self._gate(desired, release_id)
            self._switch(desired, release_id)
            self._commit(after)
            self._prune(after)
        return result

    # -- stage -----------------------------------------------------------------------------------------------------

    def _check_ports(self, desired: Desired) -> None:
        """Refuse a port that another program holds; those of our own running release are fine."""
        container = self.engine.container(ACTIVE)
        ours: set[str] = set()
        if container is not None and container["State"]["Running"]:
            label = container["Config"]["Labels"].get(RELEASE_LABEL, "")
            try:
                ours = _tcp_listeners(json.loads((self.releases / label / "runtime.json").read_text()))
            except FileNotFoundError:
                ours = _tcp_listeners(desired.configuration)
        for listener in sorted(_tcp_listeners(desired.configuration) - ours):
            host, _, port = listener.rpartition(":")
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    taken = error.errno == errno.EADDRINUSE
                    raise FleetError(
                        f"Port {port} is already taken" if taken else f"The runtime cannot listen on {listener}",
                        where=listener,
                        seen=error.strerror or str(error),
                        remedy="stop the program that listens there (ss --listening --tcp --processes names it) "
                        "or choose another port with inference_runtime_rest_port, inference_runtime_grpc_port "
                        "or inference_runtime_metrics_port",
                    ) from error

    def _check_space(self, desired: Desired, missing_image: bool, missing_models: list[Model]) -> None:
        needs: dict[int, tuple[Path, int]] = {}
        wanted = [(self.root, sum(2 * m.size for m in missing_models))]
        if missing_image:
            wanted.append((Path(self.engine.root_directory()), UNPACK_FACTOR * desired.image_size))
        for path, size in wanted:
            device = path.stat().st_dev
            needs[device] = (path, needs.get(device, (path, SPARE_BYTES))[1] + size)
        for path, need in needs.values():
            check_space(path, need)

    def _stage_image(self, image: str) -> None:
        """Pull and make it durable. A marker that outlives a power cut tells that the pull must be done again."""
        marker = self.root / "staging" / f"pulling-{image.rpartition(':')[2]}"
        if marker.exists():
            self.engine.remove_image(image)
        elif self.engine.has_image(image):
            return
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        sync_directory(marker.parent)
        self.engine.pull(image)
        os.sync()
        marker.unlink()
        sync_directory(marker.parent)

    def _stage_model(self, registry_address: str, model: Model) -> None:
        """Fetch a model's tar, verify it, unpack it beside its place and give it its name last."""
        check_digest(model.digest, f"model {model.name}")
        staging = self.root / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        archive = staging / f"{model.directory_name}.tar"
        registry = Registry(registry_address, ca_file=self.ca_file)
        try:
            fetch_blob(
                registry,
                model.repository,
                model.digest,
                model.size,
                archive,
                staging / f"{model.directory_name}.part",
            )
        finally:
            registry.close()
        unpacked = staging / f"{model.directory_name}.unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        _unpack(archive, unpacked)
        self.models.mkdir(parents=True, exist_ok=True)
        unpacked.rename(self.models / model.directory_name)
        sync_directory(self.models)
        archive.unlink()

    # -- candidate and gate ----------------------------------------------------------------------------------------

    def _gate(self, desired: Desired, release_id: str) -> None:
        """Start the release on private sockets only; it has to be ready, right and fast enough."""
        self._recover()
        configuration = {
            **desired.runtime_configuration(),
            "listen": {
                "rest": [f"unix:{SOCKET_DIRECTORY}/rest.sock"],
                "grpc": [f"unix:{SOCKET_DIRECTORY}/grpc.sock"],
                "metrics": [],
            },
        }
        try:
            self._create(CANDIDATE, desired, release_id, configuration, "candidate", network="none")
            self.engine.start(CANDIDATE)
            self._wait_until_ready(CANDIDATE, "candidate")
            self._check_models(desired)
        finally:
            self.engine.remove(CANDIDATE)

    def _check_models(self, desired: Desired) -> None:
        """Golden outputs of all models, then their latency objectives, each through the protocol of its clients."""
        sockets = self.root / "run" / "candidate"
        for model in desired.models:
            cases = str(self.models / model.directory_name / "golden") if model.golden_cases else None
            protocol = "grpc+unix" if model.protocol == "grpc" and model.p95_ms is not None else "http+unix"
            socket_name = "grpc.sock" if protocol == "grpc+unix" else "rest.sock"
            with connect(f"{protocol}://{sockets}/{socket_name}", timeout=self.start_timeout) as client:
                health = check_model(client, ModelCheck(model.name, model.version, cases), client.server_metadata())
                if health.failures:
                    raise health.failures[0]
                if model.p95_ms is None:
                    continue
                objective = ModelObjective(model.name, model.version, cases, p95_ms=model.p95_ms)
                latency = measure_model(
                    client, objective, samples=GATE_SAMPLES, warmup=GATE_WARMUP, max_seconds=GATE_SECONDS
                )
            if not latency.met:
                raise missed_objective("the candidate, before it takes traffic", latency)

    # -- switch and commit -----------------------------------------------------------------------------------------

    def _switch(self, desired: Desired, release_id: str) -> None:
        """Stop the old release, start the new one on the public listeners; on failure the old one comes back.

        The old container keeps its restart policy until the new one is committed, and the new one gets its policy
        only then: after a power cut in between, the engine itself starts the old release.
        """
        had_previous = self.engine.container(ACTIVE) is not None
        configuration = desired.runtime_configuration()
        if had_previous:
            self.engine.stop(ACTIVE)
            self.engine.rename(ACTIVE, PREVIOUS)
        try:
            self._create(ACTIVE, desired, release_id, configuration, "active", network="host")
            self.engine.start(ACTIVE)
            self._wait_until_ready(ACTIVE, "active")
            self.engine.set_restart_policy(ACTIVE, "always")
        except FleetError:
            self.engine.remove(ACTIVE)
            if had_previous:
                self.engine.rename(PREVIOUS, ACTIVE)
                self.engine.start(ACTIVE)
            raise
        self.engine.remove(PREVIOUS)

    def _recover(self) -> None:
        """Tidy what an interrupted run left: its candidate, and a previous release that must come back or go."""
        self.engine.remove(CANDIDATE)
        if self.engine.container(PREVIOUS) is None:
            return
        active = self.engine.container(ACTIVE)
        if active is not None and active["HostConfig"]["RestartPolicy"]["Name"] == "always":
            self.engine.remove(PREVIOUS)
            return
        self.engine.remove(ACTIVE)
        self.engine.rename(PREVIOUS, ACTIVE)
        self.engine.start(ACTIVE)

    def _commit(self, summary: dict[str, Any]) -> None:
        state = self.state()
        previous = state.get("active")
        if previous and previous["id"] == summary["id"]:
            previous = state.get("previous")
        _write_atomically(
            self.state_file, json.dumps({"active": summary, "previous": previous}, indent=2, sort_keys=True).encode()
        )

    def _prune(self, active: dict[str, Any]) -> None:
        """Remove what neither the active nor the previous release needs."""
        kept = [release for release in (active, self.state().get("previous")) if release]
        releases = {release["id"] for release in kept}
        models = {model["digest"].removeprefix("sha256:") for release in kept for model in release["models"]}
        for directory, names in ((self.releases, releases), (self.models, models)):
            for path in directory.iterdir() if directory.is_dir() else ():
                if path.name not in names:
                    shutil.rmtree(path)
        images = {release["image"] for release in kept}
        for repository in {image.partition("@")[0] for image in images}:
            for image in set(self.engine.images_of(repository)) - images:
                self.engine.remove_image(image)

    # -- removal ---------------------------------------------------------------------------------------------------

    def remove(self, check_mode: bool, has_engine: bool) -> dict[str, Any]:
        """Remove the runtime's containers, images, models and state; other things below the root stay."""
        containers: list[str] = []
        images: list[str] = []
        if has_engine:
            containers = [name for name in (ACTIVE, CANDIDATE, PREVIOUS) if self.engine.container(name) is not None]
            repositories = {release["image"].partition("@")[0] for release in self.state().values() if release}
            images = [image for repository in sorted(repositories) for image in self.engine.images_of(repository)]
        everything = (
            self.models,
            self.releases,
            self.cache,
            self.state_file,
            self.root / "run",
            self.root / "staging",
            self.root / "release.lock",
        )
        paths = [path for path in everything if path.exists()]
        if not check_mode:
            for name in containers:
                self.engine.remove(name)
            for image in images:
                self.engine.remove_image(image)
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"changed": bool(containers or images or paths), "release": {}, "steps": [], "diff": {}}

    # -- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "release.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FleetError(
                    "Another controller changes this host's release right now",
                    where=str(self.root / "release.lock"),
                    remedy="wait until its run has ended, then run again",
                ) from error
            yield

    def _create(
        self,
        name: str,
        desired: Desired,
        release_id: str,
        configuration: dict[str, Any],
        purpose: str,
        network: str,
    ) -> None:
        directory = self.releases / release_id
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / ("runtime.json" if purpose == "active" else f"{purpose}.json")
        _write_atomically(file, json.dumps(configuration, indent=2, sort_keys=True).encode())
        sockets = self.root / "run" / purpose
        for written in (sockets, self.cache):
            written.mkdir(parents=True, exist_ok=True)
            os.chown(written, USER, USER)
        options = [
            "--label", f"{RELEASE_LABEL}={release_id}",
            "--network", network,
            "--user", f"{USER}:{USER}",
            "--read-only",
            "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges",
            "--pids-limit", "256",
            "--restart", "no",
            "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=64m",  # noqa: S108 - inside the container
            "--mount", f"type=bind,source={file},target={CONFIGURATION_FILE},readonly",
            "--mount", f"type=bind,source={sockets},target={SOCKET_DIRECTORY}",
            "--mount", f"type=bind,source={self.cache},target={CACHE_DIRECTORY}",
        ]  # fmt: skip
        if desired.memory_mb:
            options += ["--memory", f"{desired.memory_mb}m"]
        if desired.secrets_directory:
            directory_mount = (
                f"type=bind,source={desired.secrets_directory},target={desired.secrets_directory},readonly"
            )
            options += ["--mount", directory_mount]
        for digest in sorted({model.directory_name for model in desired.models}):
            options += ["--mount", f"type=bind,source={self.models / digest},target=/models/{digest},readonly"]
        self.engine.remove(name)
        self.engine.create(name, desired.image, options)

    def _ready(self, sockets: Path) -> bool:
        try:
            with connect(f"http+unix://{sockets}/rest.sock", timeout=5) as client:
                return bool(client.ready())
        except FleetError:
            return False

    def _wait_until_ready(self, container_name: str, purpose: str) -> None:
        sockets = self.root / "run" / purpose
        deadline = time.monotonic() + self.start_timeout
        while not self._ready(sockets):
            container = self.engine.container(container_name) or {"State": {"Running": False, "ExitCode": None}}
            state = container["State"]
            if not state["Running"] or time.monotonic() > deadline:
                seen = (
                    f"not ready after {self.start_timeout:.0f} s"
                    if state["Running"]
                    else f"the container ended with code {state['ExitCode']}"
                )
                raise FleetError(
                    "The new release does not become ready",
                    where=f"container {container_name}",
                    seen=f"{seen}; its last words: {self.engine.logs(container_name) or 'none'}",
                    remedy="correct the model or its configuration; the release that served before still serves",
                )
            time.sleep(0.1)


def _summary(desired: Desired, release_id: str) -> dict[str, Any]:
    return {
        "id": release_id,
        "image": desired.image,
        "models": [{"name": m.name, "version": m.version, "digest": m.digest} for m in desired.models],
    }


def _tcp_listeners(configuration: dict[str, Any]) -> set[str]:
    return {
        address
        for addresses in configuration.get("listen", {}).values()
        for address in addresses
        if not address.startswith("unix:")
    }


def _unpack(archive: Path, target: Path) -> None:
    """Unpack regular files and directories, readable by all, and sync them; refuse whatever leads elsewhere."""
    make_directory(target)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = target / member.name
            if not (member.isreg() or member.isdir()) or not path.resolve().is_relative_to(target.resolve()):
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


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.chmod(0o644)
    _sync_file(temporary)
    temporary.rename(path)
    sync_directory(path.parent)
