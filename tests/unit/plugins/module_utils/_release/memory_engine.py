# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine in memory for the tests of releases, and what releases are made of there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import tar_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    CANDIDATE_MARK,
    RELEASE_LABEL,
    Container,
    mount_source,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import SOCKET_DIRECTORY, Desired, Model

ACTIVE = "edgeml-runtime"
CANDIDATE = "edgeml-runtime.candidate"
PREVIOUS = "edgeml-runtime.previous"
IMAGE = "registry.edgeml.internal:5443/edgeml/runtime@sha256:" + "a" * 64
#: Its directory holds nothing.
MODEL = Model("digits", "1.0.0", "edgeml/models/digits", tar_digest({})[0], 10)


class MemoryEngine(DockerEngine):
    """An engine whose containers are entries of a dictionary."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.images = {IMAGE}
        self.pulled: list[str] = []
        self.options: dict[str, Sequence[str]] = {}
        self.commands: dict[str, Sequence[str]] = {}
        self.networks: set[str] = set()
        self.made_networks: list[str] = []

    def container(self, name: str) -> dict[str, Any] | None:
        return self.containers.get(name)

    def has_image(self, reference: str) -> bool:
        return reference in self.images

    def pull(self, reference: str) -> None:
        self.pulled.append(reference)
        self.images.add(reference)

    def remove_image(self, reference: str) -> None:
        self.images.discard(reference)

    def images_of(self, repository: str) -> list[str]:
        return [image for image in self.images if image.startswith(repository + "@")]

    def create(self, name: str, image: str, options: Sequence[str], command: Sequence[str] = ()) -> None:
        self.options[name] = options
        self.commands[name] = command
        label = options[list(options).index("--label") + 1].partition("=")[2]
        mounts = [dict(part.partition("=")[::2] for part in text.split(",")) for text in options if "type=bind" in text]
        self.containers[name] = {
            "Id": f"{name} {label}",
            "RestartCount": 0,
            "Mounts": [{"Source": mount["source"], "Destination": mount["target"]} for mount in mounts],
            "Config": {"Labels": {RELEASE_LABEL: label}},
            "State": {"Running": False, "ExitCode": 0},
            "HostConfig": {
                "RestartPolicy": {"Name": "no"},
                "NetworkMode": options[list(options).index("--network") + 1],
            },
            "Active": "--publish" in options,
        }

    def create_internal_network(self, name: str) -> None:
        self.networks.add(name)
        self.made_networks.append(name)

    def remove_network(self, name: str) -> None:
        self.networks.discard(name)

    def start(self, name: str) -> None:
        self.containers[name]["State"]["Running"] = True

    def stop(self, name: str) -> None:
        self.containers[name]["State"]["Running"] = False

    def rename(self, name: str, new_name: str) -> None:
        self.containers[new_name] = self.containers.pop(name)

    def set_restart_policy(self, name: str, policy: str) -> None:
        self.containers[name]["HostConfig"]["RestartPolicy"]["Name"] = policy

    def remove(self, name: str) -> None:
        self.containers.pop(name, None)

    def logs(self, name: str, lines: int = 20) -> str:
        return "the model has no operator Foo"

    def serving(self) -> list[str]:
        """Return the containers that serve clients now."""
        return [name for name, c in self.containers.items() if c["State"]["Running"] and c["Active"]]

    def after_power_cut(self) -> list[str]:
        """Return the containers that serve clients when the host has come back."""
        started = [n for n, c in self.containers.items() if c["HostConfig"]["RestartPolicy"]["Name"] == "always"]
        return [name for name in started if not self._is_marked(name)]

    def _is_marked(self, name: str) -> bool:
        sockets = mount_source(self.containers[name], SOCKET_DIRECTORY)
        return sockets is not None and (Path(sockets) / CANDIDATE_MARK).exists()


def desired(threads: int = 1) -> Desired:
    return Desired(
        image=IMAGE,
        image_size=0,
        models=(MODEL,),
        configuration={"listen": {"rest": ["unix:/run/edgeml/rest.sock"]}, "threads": threads},
    )


def activate(container: Container, name: str) -> None:
    """Do what the runtime does when it is asked to."""
    engine = container.engine
    assert isinstance(engine, MemoryEngine)
    engine.containers[name]["Active"] = True
