# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker Engine through its own command line client, which every host with an engine has."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand

STOP_SECONDS = 15  # for a container to end by itself
#: What is kept of a container's log where the engine would keep all: in files of JSON.
LOG_OPTIONS = ("--log-opt", "max-size=10m", "--log-opt", "max-file=3")
PULL_PAUSES = (3, 6)  # seconds before the second and the third attempt
#: Where containerd keeps what it holds, unless it is configured otherwise.
CONTAINERD_DIRECTORY = "/var/lib/containerd"


def image_directory(information: Mapping[str, Any]) -> str:
    """Return the directory that holds an engine's images, by what `docker info` says as JSON.

    Engines from 29.0 on leave images to containerd, which has a directory that they do not know.
    """
    kind = dict(information.get("DriverStatus") or ()).get("driver-type", "")
    if kind.startswith("io.containerd.snapshotter") and Path(CONTAINERD_DIRECTORY).is_dir():
        return CONTAINERD_DIRECTORY
    return str(information["DockerRootDir"])


def loaded_name(image: str) -> str:
    """Return the name of an image by digest once it is loaded: an engine knows digests only of what it pulled."""
    return image.replace("@sha256:", ":")


#: Where the engine says which process it is, unless it is configured otherwise; below the root.
PROCESS_FILE = "run/docker.pid"


class EngineError(FleetError):
    """The engine does not do what it is asked, or does not answer."""


class DockerEngine:
    """The host's engine. Methods raise EngineError with the engine's own words."""

    def __init__(self, run_command: RunCommand) -> None:
        self._run_command = run_command

    def _run(self, arguments: Sequence[str], what: str, remedy: str = "") -> str:
        code, out, err = self._run_command(["docker", *arguments])
        if code != 0:
            raise EngineError(
                what,
                where="docker " + " ".join(arguments[:2]),
                seen=(err or out).strip()[-2000:],
                remedy=remedy or "see whether the engine runs (docker info) and read its log",
            )
        return out

    def _inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        code, out, err = self._run_command(["docker", kind, "inspect", name])
        if code == 0:
            return dict(json.loads(out)[0])
        if "no such" in err.lower() or "not found" in err.lower():
            return None
        raise EngineError(
            "The Docker Engine does not answer",
            where=f"docker {kind} inspect {name}",
            seen=err.strip(),
            remedy="start the engine; the role docker_engine installs and starts it",
        )

    def information(self) -> dict[str, Any]:
        """Return what `docker info` says."""
        return dict(json.loads(self._run(["info", "--format", "{{json .}}"], "The Docker Engine does not answer")))

    def process(self) -> str:
        """Return the number of the engine's process; empty if it does not run, or does not say."""
        try:
            return Path("/", PROCESS_FILE).read_text().strip()
        except OSError:
            return ""

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return what `docker image inspect` says, None if there is no such image."""
        return self._inspect("image", reference)

    def image_directory(self) -> str:
        """Return the directory that holds the engine's images."""
        return image_directory(self.information())

    def container(self, name: str) -> dict[str, Any] | None:
        """Return what `docker container inspect` says, None if there is no such container."""
        return self._inspect("container", name)

    def has_image(self, reference: str) -> bool:
        """Return whether the image is listed. A listed image may still be damaged after a power cut."""
        return self._inspect("image", reference) is not None

    def image_id(self, reference: str) -> str:
        """Return the engine's own name for an image, "" if it does not have it."""
        return str((self._inspect("image", reference) or {"Id": ""})["Id"])

    def pull(self, reference: str) -> None:
        """Pull an image by digest. A failure is tried again: the engine reads a changed /etc/hosts only after 5 s."""
        for pause in PULL_PAUSES:
            try:
                self._pull(reference)
                return
            except FleetError:
                time.sleep(pause)
        self._pull(reference)

    def _pull(self, reference: str) -> None:
        self._run(
            ["pull", "--quiet", reference],
            f"The image {reference} cannot be pulled",
            "check that the site mirror is reachable and holds the lock's content (playbook edgeml.fleet.mirror; with "
            "-e edgeml_force=true it also reads anew what the mirror holds, and heals it)",
        )

    def load(self, archive: Path) -> None:
        """Take the image that an archive in the form of `docker image save` holds."""
        self._run(["image", "load", "--quiet", "--input", str(archive)], "An image cannot be loaded")

    def remove_image(self, reference: str) -> None:
        """Remove an image by reference; absent is fine."""
        if self.has_image(reference):
            self._run(["image", "rm", "--force", reference], f"The image {reference} cannot be removed")

    def images_of(self, repository: str) -> list[str]:
        """Return the references by digest (``repository@sha256:...``) of all images of a repository."""
        out = self._run(
            ["image", "ls", "--digests", "--format", "{{.Repository}}@{{.Digest}}", repository],
            "Images cannot be listed",
        )
        return sorted({line for line in out.split() if "@sha256:" in line})

    def create(self, name: str, image: str, options: Sequence[str], command: Sequence[str] = ()) -> None:
        """Create a container, with the image's own command unless one is given; it is not started."""
        log = LOG_OPTIONS if self.information()["LoggingDriver"] == "json-file" else ()
        self._run(
            ["container", "create", "--pull", "never", "--name", name, *log, *options, image, *command],
            f"The container {name} cannot be made",
        )

    def address(self, name: str) -> str:
        """Return the IP address of a running container on its bridge."""
        networks = (self.container(name) or {}).get("NetworkSettings", {}).get("Networks", {})
        for network in networks.values():
            if network["IPAddress"]:
                return str(network["IPAddress"])
        raise FleetError(f"The container {name} has no address", where=name, remedy="see why it does not run")

    def create_internal_network(self, name: str) -> None:
        """Create a bridge that leads nowhere but to this host."""
        self._run(["network", "create", "--internal", name], f"The network {name} cannot be made")

    def remove_network(self, name: str) -> None:
        """Remove a network; absent is fine."""
        if self._inspect("network", name) is not None:
            self._run(["network", "rm", name], f"The network {name} cannot be removed")

    def run_to_end(self, name: str) -> tuple[int, str]:
        """Start a container, wait for its end, and return its exit code and what it wrote."""
        code, out, err = self._run_command(["docker", "container", "start", "--attach", name])
        return code, (out + err).strip()

    def start(self, name: str) -> None:
        """Start a container."""
        self._run(["container", "start", name], f"The container {name} cannot be started")

    def stop(self, name: str) -> None:
        """Stop a container gracefully, by force after the time that it was made with, 15 s at least."""
        own = ((self.container(name) or {}).get("Config") or {}).get("StopTimeout") or 0
        seconds = max(STOP_SECONDS, int(own))
        self._run(["container", "stop", "--time", str(seconds), name], f"The container {name} cannot be stopped")

    def rename(self, name: str, new_name: str) -> None:
        """Rename a container."""
        self._run(["container", "rename", name, new_name], f"The container {name} cannot be renamed")

    def set_restart_policy(self, name: str, policy: str) -> None:
        """Set when the engine starts a container again: "no" or "always"."""
        self._run(["container", "update", "--restart", policy, name], f"The container {name} cannot be updated")

    def remove(self, name: str) -> None:
        """Remove a container, running or not; absent is fine."""
        if self.container(name) is not None:
            self._run(["container", "rm", "--force", name], f"The container {name} cannot be removed")

    def processes(self, name: str) -> list[int]:
        """Return the ids, on the host, of the processes of a container; none if it does not run."""
        code, out, _error = self._run_command(["docker", "container", "top", name, "-e", "-o", "pid"])
        return [int(word) for word in out.split() if word.isdigit()] if code == 0 else []

    def logs(self, name: str, lines: int = 20) -> str:
        """Return the last lines that the container wrote, oldest first."""
        code, out, err = self._run_command(["docker", "container", "logs", "--tail", str(lines), name])
        return (out + err).strip() if code == 0 else ""


class SeenOnce(DockerEngine):
    """An engine that is asked for each container once. For looking: what it tells does not change any more."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._seen: dict[str, dict[str, Any] | None] = {}

    def container(self, name: str) -> dict[str, Any] | None:
        """Return what `docker container inspect` said first."""
        if name not in self._seen:
            self._seen[name] = self._engine.container(name)
        return self._seen[name]


class NoEngine(DockerEngine):
    """The engine of a host that has none yet, for check mode: it holds nothing and answers nothing else."""

    def __init__(self) -> None:
        super().__init__(lambda arguments: (1, "", "there is no Docker Engine on this host"))

    def _inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        return None

    def images_of(self, repository: str) -> list[str]:
        """Return no images."""
        return []
