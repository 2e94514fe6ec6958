# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release transaction: compare, stage, candidate, gate, switch, commit. It runs on the device.

Whatever ends it (an error, a lost connection, a power cut), the old release serves or the new one does.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import (
    DEFAULT_RUNTIME,
    container_name,
    runtime_root,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import ModelCheck, check_model
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import (
    ModelObjective,
    measure_model,
    missed_objective,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    Desired,
    Model,
    check_devices,
    tcp_listeners,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import (
    bytes_to_fetch,
    check_release_space,
    stage_image,
    stage_model,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.plan import (
    describe,
    described_before,
    make_diff,
    make_plan,
)

#: Requests for a latency objective, before the release takes traffic.
GATE_WARMUP = 20
GATE_SAMPLES = 200
GATE_SECONDS = 5.0


class Release:
    """Brings one runtime of a host to a desired release below `host_root` (``/var/lib/edgeml``).

    Parameters
    ----------
    runtimes : sequence of str or None
        Names of all runtimes that the host keeps, in the order in which they are released: with the last one, those
        that are not named are removed. None leaves the others alone.
    """

    def __init__(
        self,
        engine: DockerEngine,
        host_root: Path,
        ca_file: str = "",
        start_timeout: float = 60,
        name: str = DEFAULT_RUNTIME,
        runtimes: Sequence[str] | None = None,
    ) -> None:
        self.engine = engine
        self.host_root = host_root
        self.ca_file = ca_file
        self.start_timeout = start_timeout
        self.name = name
        self.runtimes = runtimes
        self.root = runtime_root(host_root, name)
        self.active = container_name(name)
        self.candidate = f"{self.active}.candidate"
        self.previous = f"{self.active}.previous"
        self.models = self.root / "models"
        self.releases = self.root / "releases"
        self.staging = self.root / "staging"
        self.state_file = self.root / "state.json"

    # -- compare ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the committed state: {} or {"active": {"id", "image", "models"}, "previous": the same or None}."""
        try:
            return dict(json.loads(self.state_file.read_text()))
        except FileNotFoundError:
            return {}

    def _faults(self, desired: Desired, release_id: str) -> list[str]:
        """Return why the committed release is not what runs on this host, ready and complete."""
        container = self.engine.container(self.active)
        if container is None:
            return [f"there is no container {self.active}"]
        faults = []
        if container["Config"]["Labels"].get(RELEASE_LABEL) != release_id:
            faults.append(f"the container {self.active} is of another release")
        if not container["State"]["Running"]:
            faults.append(f"the container {self.active} does not run")
        if container["HostConfig"]["RestartPolicy"]["Name"] != "always":
            faults.append(f"the container {self.active} would not start with the engine")
        faults += [f"model {m.name} {m.version} is not on the disk" for m in self._missing_models(desired)]
        if not faults and not self._ready(self._container(desired, release_id), self.active, "active"):
            faults.append(f"the container {self.active} does not say that it is ready")
        return faults

    def _missing_models(self, desired: Desired) -> list[Model]:
        return [model for model in desired.models if not (self.models / model.directory_name).is_dir()]

    def converge(self, desired: Desired, check_mode: bool) -> dict[str, Any]:
        """Make `desired` the active release; return {"changed", "release", "plan", "diff", "bytes_fetched"}."""
        release_id = desired.release_id()
        before = described_before(self.state(), self.releases)
        after = describe(desired, release_id)
        committed = before is not None and before["id"] == release_id
        faults = self._faults(desired, release_id) if committed else []
        is_active = committed and not faults
        unneeded = self._unneeded(desired)
        missing_image = not is_active and not self.engine.has_image(desired.image)
        missing_models = [] if is_active else self._missing_models(desired)
        if not is_active:
            self._check_ports(desired, unneeded)
        bytes_to_move = {
            "image": desired.image_size if missing_image else 0,
            "models": sum(bytes_to_fetch(self.staging, model) for model in missing_models),
        }
        plan = make_plan(self.name, before, after, faults, bytes_to_move, [other.name for other in unneeded])
        result: dict[str, Any] = {
            "changed": not is_active or bool(unneeded),
            "release": after,
            "plan": plan,
            "diff": make_diff(plan, before, after),
            "bytes_fetched": bytes_to_move["models"],
            "evidence": self._evidence(desired, release_id),
        }
        if check_mode or not result["changed"]:
            return result
        with self._lock():
            if not is_active:
                result["bytes_fetched"] = self._stage(desired, missing_image, missing_models)
                container = self._container(desired, release_id)
                self._gate(container)
                self._switch(container, unneeded)
                self._commit(after)
            for other in unneeded:
                other.erase()
            self._prune(after)
        return result

    def _evidence(self, desired: Desired, release_id: str) -> list[dict[str, Any]]:
        """Return what a later run can look at to see that this release still is what the host has (host_state)."""
        if desired.server is None:
            ready = [f"http+unix://{self.root / 'run' / 'active'}/rest.sock"]
        else:
            ready = [f"http://{address}" for address in desired.configuration["listen"].get("rest", ())[:1]]
        return [
            {"kind": "file", "path": str(self.state_file)},
            {"kind": "tree", "path": str(self.releases / release_id)},
            *({"kind": "tree", "path": str(self.models / model.directory_name)} for model in desired.models),
            *({"kind": "container", "name": name} for name in (self.active, self.candidate, self.previous)),
            *({"kind": "ready", "endpoint": url, "path": "/v2/health/ready"} for url in ready),
        ]

    def _container(self, desired: Desired, release_id: str) -> Container:
        return Container(self.engine, self.root, desired, release_id)

    def _unneeded(self, desired: Desired) -> list[Release]:
        """Return the host's runtimes that shall go now: all with the last one kept, else those in this one's way."""
        others = self._others()
        if self.runtimes and self.runtimes[-1] == self.name:
            return others
        return [other for other in others if other.listeners() & desired.listeners()]

    def _others(self) -> list[Release]:
        """Return the runtimes on this host that are not among those to keep."""
        if self.runtimes is None:
            return []
        found = self._names_below_root()
        if any((self.host_root / name).exists() for name in ("state.json", "releases")):
            found.insert(0, DEFAULT_RUNTIME)
        kept = {self.name, *self.runtimes}
        return [Release(self.engine, self.host_root, name=name) for name in found if name not in kept]

    def _names_below_root(self) -> list[str]:
        directory = self.host_root / "runtimes"
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []

    def listeners(self) -> set[str]:
        """Return the addresses on which the running release serves."""
        container = self.engine.container(self.active)
        if container is None or not container["State"]["Running"]:
            return set()
        label = container["Config"]["Labels"].get(RELEASE_LABEL, "")
        try:
            return tcp_listeners(json.loads((self.releases / label / "runtime.json").read_text()))
        except FileNotFoundError:
            return set()

    # -- stage -----------------------------------------------------------------------------------------------------

    def _check_ports(self, desired: Desired, unneeded: Sequence[Release]) -> None:
        """Refuse a port that another program holds; those of our own running releases are fine."""
        ours = self.listeners().union(*(other.listeners() for other in unneeded))
        for listener in sorted(desired.listeners() - ours):
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
                        "or inference_runtime_metrics_port, or with the runtime's ports in edgeml_runtimes",
                    ) from error

    def _stage(self, desired: Desired, missing_image: bool, missing_models: Sequence[Model]) -> int:
        """Fetch what is missing; return the bytes of models fetched."""
        check_devices(desired.devices)
        check_release_space(self.engine, self.root, desired.image_size if missing_image else 0, missing_models)
        stage_image(self.engine, self.staging, desired.image)
        registry = Registry(desired.image.split("/")[0], ca_file=self.ca_file)
        try:
            return sum(stage_model(registry, self.staging, self.models, model) for model in missing_models)
        finally:
            registry.close()

    # -- candidate and gate ----------------------------------------------------------------------------------------

    def _gate(self, container: Container) -> None:
        """Start the release where only this host reaches it; it has to be ready, right and fast enough."""
        self._recover()
        try:
            container.create(self.candidate, "candidate")
            self.engine.start(self.candidate)
            self._wait_until_ready(container, self.candidate, "candidate")
            self._check_models(container)
        finally:
            container.remove(self.candidate)

    def _check_models(self, container: Container) -> None:
        """Golden outputs of all models, then their latency objectives, each through the protocol of its clients."""
        for model in container.desired.models:
            cases = str(self.models / model.directory_name / "golden") if model.golden_cases else None
            protocol = "grpc" if model.protocol == "grpc" and model.p95_ms is not None else "rest"
            endpoint = container.endpoint(self.candidate, "candidate", protocol)
            with connect(endpoint, timeout=self.start_timeout) as client:
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

    def _switch(self, container: Container, unneeded: Sequence[Release]) -> None:
        """Stop the old release, start the new one on the public listeners; on failure the old one comes back.

        The old container keeps its restart policy until the new one is committed, and the new one gets its policy
        only then: after a power cut in between, the engine itself starts the old release. Runtimes that shall go and
        hold a port of the new release are stopped and, on failure, started in the same way.
        """
        yielding = [other for other in unneeded if other.listeners() & container.desired.listeners()]
        had_previous = self.engine.container(self.active) is not None
        for other in yielding:
            self.engine.stop(other.active)
        if had_previous:
            self.engine.stop(self.active)
            self.engine.rename(self.active, self.previous)
        try:
            container.create(self.active, "active")
            self.engine.start(self.active)
            self._wait_until_ready(container, self.active, "active")
            self.engine.set_restart_policy(self.active, "always")
        except FleetError:
            self.engine.remove(self.active)
            if had_previous:
                self.engine.rename(self.previous, self.active)
                self.engine.start(self.active)
            for other in yielding:
                self.engine.start(other.active)
            raise
        self.engine.remove(self.previous)

    def _recover(self) -> None:
        """Tidy what an interrupted run left: a previous release that must come back or go."""
        if self.engine.container(self.previous) is None:
            return
        active = self.engine.container(self.active)
        if active is not None and active["HostConfig"]["RestartPolicy"]["Name"] == "always":
            self.engine.remove(self.previous)
            return
        self.engine.remove(self.active)
        self.engine.rename(self.previous, self.active)
        self.engine.start(self.active)

    def _commit(self, summary: dict[str, Any]) -> None:
        state = self.state()
        previous = state.get("active")
        if previous and previous["id"] == summary["id"]:
            previous = state.get("previous")
        committed = {"active": summary, "previous": previous}
        replace_file(self.state_file, json.dumps(committed, indent=2, sort_keys=True).encode())

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
        for image in self._images(images) - images:
            self.engine.remove_image(image)

    def _images(self, references: set[str]) -> set[str]:
        """Return the images on this host of the repositories of `references`, without those of other runtimes."""
        others = {
            release["image"]
            for name in {DEFAULT_RUNTIME, *self._names_below_root()} - {self.name}
            for release in Release(self.engine, self.host_root, name=name).state().values()
            if release
        }
        repositories = {reference.partition("@")[0] for reference in references}
        return {image for repository in repositories for image in self.engine.images_of(repository)} - others

    # -- removal ---------------------------------------------------------------------------------------------------

    def remove(self, check_mode: bool, has_engine: bool) -> dict[str, Any]:
        """Remove this runtime and those that are not to keep; other things below the root stay."""
        present = [release for release in (self, *self._others()) if any(release._traces(has_engine))]
        if not check_mode:
            for release in present:
                release.erase(has_engine)
            if not self.runtimes:
                (self.host_root / "release.lock").unlink(missing_ok=True)
        names = [release.name for release in present]
        diff = {"before": {"removed_runtimes": names}, "after": {"removed_runtimes": []}} if names else {}
        plan = {"runtime": self.name, "action": "remove" if names else "none", "removed_runtimes": names}
        return {"changed": bool(present), "release": {}, "plan": plan, "diff": diff, "bytes_fetched": 0}

    def erase(self, has_engine: bool = True) -> None:
        """Remove this runtime's containers, images, models and state."""
        containers, images, paths = self._traces(has_engine)
        for name in containers:
            self.engine.remove(name)
        if has_engine:
            self.engine.remove_network(self.candidate)
        for image in images:
            self.engine.remove_image(image)
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.name != DEFAULT_RUNTIME and not self._names_below_root():
            shutil.rmtree(self.host_root / "runtimes", ignore_errors=True)

    def _traces(self, has_engine: bool) -> tuple[list[str], list[str], list[Path]]:
        """Return this runtime's containers, images and paths."""
        containers: list[str] = []
        images: set[str] = set()
        if has_engine:
            names = (self.active, self.candidate, self.previous)
            containers = [name for name in names if self.engine.container(name) is not None]
            images = self._images({release["image"] for release in self.state().values() if release})
        paths = [self.root]
        if self.name == DEFAULT_RUNTIME:
            paths = [self.root / name for name in ("models", "releases", "cache", "state.json", "run", "staging")]
        return containers, sorted(images), [path for path in paths if path.exists()]

    # -- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        make_directory(self.root)
        lock = self.host_root / "release.lock"
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FleetError(
                    "Another controller changes this host's release right now",
                    where=str(lock),
                    remedy="wait until its run has ended, then run again",
                ) from error
            yield

    def _ready(self, container: Container, name: str, purpose: str) -> bool:
        try:
            with connect(container.endpoint(name, purpose, "rest"), timeout=5) as client:
                return bool(client.ready())
        except FleetError:
            return False

    def _wait_until_ready(self, container: Container, name: str, purpose: str) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._ready(container, name, purpose):
            state = (self.engine.container(name) or {"State": {"Running": False, "ExitCode": None}})["State"]
            if not state["Running"] or time.monotonic() > deadline:
                seen = (
                    f"not ready after {self.start_timeout:.0f} s"
                    if state["Running"]
                    else f"the container ended with code {state['ExitCode']}"
                )
                raise FleetError(
                    "The new release does not become ready",
                    where=f"container {name}",
                    seen=f"{seen}; its last words: {self.engine.logs(name) or 'none'}",
                    remedy="correct the model or its configuration; the release that served before still serves",
                )
            time.sleep(0.1)
