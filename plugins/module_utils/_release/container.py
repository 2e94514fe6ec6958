# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container that serves a release: the collection's runtime, or any server of the protocol."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import SERVICE_USER
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    CACHE_DIRECTORY,
    SOCKET_DIRECTORY,
    Desired,
    ForeignServer,
    Limits,
)

RELEASE_LABEL = "io.edgeml.release"
CONFIGURATION_FILE = "/etc/edgeml/runtime.json"


class Container:
    """The containers of one release below `root`: how they are made, and where they are asked.

    Purposes: ``candidate`` can be reached from this host only, ``active`` is what clients reach.
    """

    def __init__(self, engine: DockerEngine, root: Path, desired: Desired, release_id: str) -> None:
        self.engine = engine
        self.root = root
        self.desired = desired
        self.release_id = release_id

    def create(self, name: str, purpose: str) -> None:
        """Make the container anew, with as few rights as its models need; it is not started."""
        desired = self.desired
        directory = self.root / "releases" / self.release_id
        make_directory(directory)
        configuration = directory / ("runtime.json" if purpose == "active" else f"{purpose}.json")
        content = json.dumps(desired.runtime_configuration(purpose), indent=2, sort_keys=True)
        replace_file(configuration, content.encode())
        self.remove(name)
        options = [
            "--label", f"{RELEASE_LABEL}={self.release_id}",
            "--read-only",
            "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges",
            "--restart", "no",
            "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=64m",  # noqa: S108 - inside the container
            *_limit_options(desired.limits),
            *_device_options(desired.devices),
        ]  # fmt: skip
        environment = dict(desired.environment)
        if desired.server is None:
            options += self._runtime_options(purpose, configuration)
        else:
            environment = {**desired.server.environment, **environment}
            options += self._foreign_options(desired.server, name, purpose)
        for key, value in sorted(environment.items()):
            options += ["--env", f"{key}={value}"]
        self.engine.create(name, desired.image, options, desired.server.command if desired.server else ())

    def remove(self, name: str) -> None:
        """Remove the container and the network that was made for it; absent is fine."""
        self.engine.remove(name)
        if self.desired.server is not None:
            self.engine.remove_network(name)

    def endpoint(self, name: str, purpose: str, protocol: str) -> str:
        """Return the URL at which this host asks the running container, by another protocol if it lacks this one."""
        server = self.desired.server
        scheme = "http" if protocol == "rest" else "grpc"
        if server is None:
            return f"{scheme}+unix://{self.root / 'run' / purpose}/{protocol}.sock"
        ports = server.ports()
        if protocol not in ports:
            protocol = next(iter(ports))
            scheme = "http" if protocol == "rest" else "grpc"
        return f"{scheme}://{self.engine.address(name)}:{ports[protocol]}"

    def _runtime_options(self, purpose: str, configuration: Path) -> list[str]:
        desired = self.desired
        sockets = self.root / "run" / purpose
        cache = self.root / "cache"
        for written in (sockets, cache):
            make_directory(written)
            os.chown(written, SERVICE_USER, SERVICE_USER)
        options = [
            "--network", "host" if purpose == "active" else "none",
            "--user", f"{SERVICE_USER}:{SERVICE_USER}",
            *_mount(configuration, CONFIGURATION_FILE),
            *_mount(sockets, SOCKET_DIRECTORY, writable=True),
            *_mount(cache, CACHE_DIRECTORY, writable=True),
        ]  # fmt: skip
        if desired.secrets_directory:
            options += _mount(Path(desired.secrets_directory), desired.secrets_directory)
        for digest in sorted({model.directory_name for model in desired.models}):
            options += _mount(self.root / "models" / digest, f"/models/{digest}")
        return options

    def _foreign_options(self, server: ForeignServer, name: str, purpose: str) -> list[str]:
        if purpose == "active":
            network = "bridge"
        else:
            network = name
            self.engine.create_internal_network(network)
        options = ["--network", network, "--user", server.user]
        if purpose == "active":
            listen = self.desired.configuration["listen"]
            for protocol, port in {**server.ports(), "metrics": server.metrics_port}.items():
                for address in listen.get(protocol, []):
                    options += ["--publish", f"{address}:{port}"]
        for model in self.desired.models:
            options += _mount(self.root / "models" / model.directory_name, f"{server.models_directory}/{model.name}")
        return options


def check_devices(devices: tuple[str, ...]) -> None:
    """Raise FleetError for the devices that are not on this host."""
    absent = [path for path in devices if not _is_device(path)]
    if absent:
        raise FleetError(
            "A model needs a device that this host does not have",
            where=", ".join(absent),
            seen="no such device",
            remedy="connect it, name the kernel module that makes it in the model's requires.kernel_modules, "
            "or place the model elsewhere",
        )


def check_port(listener: str) -> None:
    """Raise FleetError if no server can listen on `listener` (``ADDRESS:PORT``, an IPv6 address in brackets)."""
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


def _is_device(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _device_options(devices: tuple[str, ...]) -> list[str]:
    """Pass the devices, and the groups that may use them, to a user without rights of its own."""
    options = []
    groups = set()
    for path in devices:
        options += ["--device", f"{path}:{path}:rw"]
        status = Path(path).stat()
        if status.st_mode & 0o006 != 0o006 and status.st_mode & 0o060 == 0o060:
            groups.add(status.st_gid)
    for group in sorted(groups):
        options += ["--group-add", str(group)]
    return options


def _limit_options(limits: Limits) -> list[str]:
    options = []
    if limits.pids:
        options += ["--pids-limit", str(limits.pids)]
    if limits.memory_mb:
        options += ["--memory", f"{limits.memory_mb}m"]
    if limits.cpus:
        options += ["--cpus", str(limits.cpus)]
    if limits.shared_memory_mb:
        options += ["--shm-size", f"{limits.shared_memory_mb}m"]
    return options


def _mount(source: Path, target: str, *, writable: bool = False) -> list[str]:
    return ["--mount", f"type=bind,source={source},target={target}" + ("" if writable else ",readonly")]
