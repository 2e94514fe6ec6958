# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that serves at all times, with few rights. What works stays until what is new answers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, loaded_name
from ansible_collections.edgeml.fleet.plugins.module_utils._host.evidence import answers
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import SERVICE_USER
from ansible_collections.edgeml.fleet.plugins.module_utils._host.selinux import relabelled

LABEL = "io.edgeml.made-of"
HARDENED = (
    "--restart", "always",
    "--cpu-shares", "512",  # half of what a runtime on the same host has
    "--user", f"{SERVICE_USER}:{SERVICE_USER}",
    "--userns", "host",  # files of the host are the service user's by number, whatever the engine remaps
    "--read-only",
    "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges",
    "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=16m",  # noqa: S108 - inside the container
)  # fmt: skip
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Readiness:
    """Where the server answers a GET with `status` when it is ready, and for how many `seconds` it is waited for."""

    endpoint: str
    path: str
    status: int
    seconds: float


@dataclass(frozen=True)
class ServiceContainer:
    """A container as it is meant to be.

    `image` is a reference; `publish` and `volumes` are as `docker container create` takes them. `configuration` are
    files, or directories with files, on the host that the server reads when it starts. `test` is a command of the image
    that fails where they are wrong; empty for none.
    """

    name: str
    image: str
    publish: Sequence[str]
    volumes: Sequence[str]
    configuration: Sequence[str]
    pids: int
    memory_mb: int
    test: Sequence[str]
    ready: Readiness

    def made_of(self, engine: DockerEngine) -> str:
        """Return the digest of all that the container is made of, its configuration's content included."""
        digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files()}
        # Another image can get the same name, but not the same digest.
        image = self.image if "@" in self.image else engine.image_id(self.image)
        parts = [image, self._options(), list(self.publish), digests]
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def apply(
        self, engine: DockerEngine, fetch: Callable[[DockerEngine], None] | None, check_mode: bool
    ) -> Mapping[str, Any]:
        """Have the container run; return the module's result. `fetch` gives the engine an image that it lacks.

        Raises
        ------
        FleetError
            The configuration fails its test, or the new container does not answer. The container that served before
            serves again then.
        """
        found = engine.container(self.name)
        made_of = self.made_of(engine)
        if found is None:
            action = "create"
        elif (found["Config"].get("Labels") or {}).get(LABEL) != made_of:
            action = "replace"
        else:
            action = "none" if found["State"]["Running"] else "start"
        result = {"changed": action != "none", "plan": {"action": action}}
        if check_mode:
            return result
        if action in ("none", "start"):
            if action == "start":
                engine.start(self.name)
            self._wait(engine)
            return result
        if fetch is not None and not any(map(engine.has_image, self._names())):
            fetch(engine)
        image = next(filter(engine.has_image, self._names()), self.image)
        self._try_configuration(engine, image)
        self._replace(engine, image, made_of, found is not None)
        return result

    def _names(self) -> tuple[str, ...]:
        """Return the names by which an engine may know the image: pulled, or loaded."""
        return (self.image, loaded_name(self.image)) if "@" in self.image else (self.image,)

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for place in map(Path, self.configuration):
            found += sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
        return [path for path in found if path.is_file()]

    def _options(self) -> list[str]:
        options = [*HARDENED, "--pids-limit", str(self.pids), "--memory", f"{self.memory_mb}m"]
        for volume in self.volumes:
            options += ["--volume", relabelled(volume)]
        return options

    def _try_configuration(self, engine: DockerEngine, image: str) -> None:
        if not self.test:
            return
        trial = f"{self.name}-trial"
        engine.remove(trial)
        options = [option if option != "always" else "no" for option in self._options()]
        engine.create(trial, image, options, self.test)
        try:
            code, words = engine.run_to_end(trial)
        finally:
            engine.remove(trial)
        if code != 0:
            raise FleetError(
                f"The configuration of the container {self.name} fails its test",
                where=", ".join(self.configuration),
                seen=words[-2000:],
                remedy="correct the variable that it names; the container that served before still serves",
            )

    def _replace(self, engine: DockerEngine, image: str, made_of: str, exists: bool) -> None:
        before = f"{self.name}-before"
        if exists:
            engine.remove(before)
            engine.rename(self.name, before)
        has_before = engine.container(before) is not None  # a replacement that was interrupted leaves it as well
        if has_before:
            engine.stop(before)
        ports = [word for port in self.publish for word in ("--publish", port)]
        try:
            engine.create(self.name, image, [*self._options(), *ports, "--label", f"{LABEL}={made_of}"])
            engine.start(self.name)
            self._wait(engine)
        except FleetError:
            if has_before:
                engine.remove(self.name)
                engine.rename(before, self.name)
                engine.start(self.name)
            raise
        engine.remove(before)

    def _wait(self, engine: DockerEngine) -> None:
        end = time.monotonic() + self.ready.seconds
        while not answers(self.ready.endpoint, self.ready.path, self.ready.status):
            if time.monotonic() > end:
                raise FleetError(
                    f"The container {self.name} does not answer within {self.ready.seconds:g} s",
                    where=self.ready.endpoint + self.ready.path,
                    seen=engine.logs(self.name, 10) or "nothing in its log",
                    remedy="correct what its log names, then run again",
                )
            time.sleep(POLL_SECONDS)
