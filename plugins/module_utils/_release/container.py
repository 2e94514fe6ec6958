# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container that serves a release: the collection's runtime, or any server of the protocol."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import STOP_SECONDS, DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import (
    make_directory,
    replace_file,
    sync_directory,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import SERVICE_USER, is_cdi_name
from ansible_collections.edgeml.fleet.plugins.module_utils._host.selinux import mount
from ansible_collections.edgeml.fleet.plugins.module_utils._host.unix_http import UnixConnection
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    CACHE_DIRECTORY,
    SOCKET_DIRECTORY,
    Desired,
    ForeignServer,
    Limits,
    Model,
)

RELEASE_LABEL = "io.edgeml.release"
CONFIGURATION_FILE = "/etc/edgeml/runtime.json"
ADMIN_SOCKET = "admin.sock"
METRICS_SOCKET = "metrics.sock"  # for the guard
CANDIDATE_MARK = "candidate"  # a runtime that finds this file among its sockets starts as a candidate
RUNTIME_COMMAND = ("serve", "--config", CONFIGURATION_FILE, "--candidate-file", f"{SOCKET_DIRECTORY}/{CANDIDATE_MARK}")
ADMIN_SECONDS = 30.0
#: The weight of a container when processors are short, as the engine has it by default.
CPU_SHARES = 1024


class AdminError(Exception):
    """A runtime does not do what it is asked at its admin socket."""


class Container:
    """The containers of one release below `root`: how they are made, and where they are asked.

    The collection's own runtime runs in one container from its first start on: a *candidate* on private sockets, which
    becomes *active* beside the release before it. Another server cannot do that; its candidate is a container of its
    own, on a network that leads nowhere, and the active one is made when its ports are free.
    """

    def __init__(
        self,
        engine: DockerEngine,
        root: Path,
        desired: Desired,
        release_id: str,
        active: str,
        cpu_shares: int = CPU_SHARES,
    ) -> None:
        self.engine = engine
        self.root = root
        self.desired = desired
        self.release_id = release_id
        self.active = active
        self.cpu_shares = cpu_shares

    @property
    def hands_over(self) -> bool:
        """Whether a candidate can become active beside the release before it."""
        return self.desired.server is None

    def create(self, name: str, purpose: str) -> None:
        """Make the container anew, with as few rights as its models need; it is not started.

        `purpose` is ``candidate`` or, for another server, ``active``.
        """
        desired = self.desired
        directory = self.root / "releases" / self.release_id
        make_directory(directory)
        self.remove(name)
        options = [
            "--label", f"{RELEASE_LABEL}={self.release_id}",
            "--read-only",
            "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges",
            "--restart", "no",
            "--cpu-shares", str(self.cpu_shares),
            "--stop-timeout", str(STOP_SECONDS + int(desired.configuration.get("drain_seconds") or 0)),
            "--userns", "host",  # files of the host are the service user's by number, whatever the engine remaps
            "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=64m",  # noqa: S108 - inside the container
            *_limit_options(desired.limits),
            *_device_options(desired.devices),
            *_gpu_options(desired.gpus),
        ]  # fmt: skip
        environment = dict(desired.environment)
        configuration = desired.runtime_configuration()
        if desired.server is None:
            listen = dict(configuration.get("listen", {}))
            listen["admin"] = [f"unix:{SOCKET_DIRECTORY}/{ADMIN_SOCKET}"]
            listen["metrics"] = [*listen.get("metrics", ()), f"unix:{SOCKET_DIRECTORY}/{METRICS_SOCKET}"]
            configuration = {**configuration, "listen": listen}
            options += self._runtime_options(directory / "runtime.json")
            command: tuple[str, ...] = RUNTIME_COMMAND
        else:
            environment = {**desired.server.environment, **environment}
            options += self._foreign_options(desired.server, name, purpose)
            command = desired.server.command
        replace_file(directory / "runtime.json", json.dumps(configuration, indent=2, sort_keys=True).encode())
        for key, value in sorted(environment.items()):
            options += ["--env", f"{key}={value}"]
        self.engine.create(name, desired.image, options, command)

    def remove(self, name: str) -> None:
        """Remove the container and the network that was made for it; absent is fine."""
        self.engine.remove(name)
        if self.desired.server is not None:
            self.engine.remove_network(name)

    def endpoint(self, name: str, protocol: str) -> str:
        """Return the URL at which this host asks the running container, by another protocol if it lacks this one."""
        server = self.desired.server
        scheme = "http" if protocol == "rest" else "grpc"
        if server is None:
            return f"{scheme}+unix://{self._sockets(name)}/{protocol}.sock"
        ports = server.ports()
        if protocol not in ports:
            protocol = next(iter(ports))
            scheme = "http" if protocol == "rest" else "grpc"
        return f"{scheme}://{self.engine.address(name)}:{ports[protocol]}"

    def golden(self, model: Model) -> str | None:
        """Return the directory of a model's golden cases on this host, None if it has none."""
        return str(self.root / "models" / model.directory_name / "golden") if model.golden_cases else None

    def activate(self, name: str) -> None:
        """Let a candidate serve clients, beside the release before it on the same ports.

        Raises FleetError with the runtime's own reason; the candidate is one still.
        """
        try:
            self.ask_admin(name, "POST", "/activate")
        except AdminError as error:
            raise FleetError(
                "The new release cannot take over the ports",
                where=f"container {name}",
                seen=str(error),
                remedy="correct what it names; the release that served before still serves",
            ) from None

    def ask_admin(self, name: str, method: str, path: str, document: Any = None) -> tuple[dict[str, Any], bytes]:
        """Return what a runtime's admin socket answers: the JSON part, and the bytes after it.

        Raises AdminError with the runtime's own reason.
        """
        connection = UnixConnection(str(self._sockets(name) / ADMIN_SOCKET), timeout=ADMIN_SECONDS)
        try:
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, headers={"Host": "localhost"})
            answer = connection.getresponse()
            content = answer.read()
            size = int(answer.headers.get("Inference-Header-Content-Length", len(content)))
            told: dict[str, Any] = json.loads(content[:size] or b"{}")
            if answer.status != 200:
                raise AdminError(str(told.get("error", answer.status)))
            return told, content[size:]
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise AdminError(str(error)) from None
        finally:
            connection.close()

    def confirm(self, name: str) -> None:
        """Have the container active after each start from now on."""
        sockets = self._sockets(name)
        (sockets / CANDIDATE_MARK).unlink(missing_ok=True)
        sync_directory(sockets)
        self.engine.set_restart_policy(name, "always")

    def _sockets(self, name: str) -> Path:
        container = self.engine.container(name)
        source = mount_source(container, SOCKET_DIRECTORY) if container else None
        if source is None:
            raise FleetError(f"The container {name} is gone", where=name, remedy="run again")
        return Path(source)

    def _free_sockets(self) -> Path:
        """Return one of two directories for sockets that no container uses, empty."""
        serving = self.engine.container(self.active)
        used = mount_source(serving, SOCKET_DIRECTORY) if serving else None
        directory = next(path for path in (self.root / "run" / slot for slot in "ab") if str(path) != used)
        make_directory(directory)
        for path in directory.iterdir():
            path.unlink()
        return directory

    def _runtime_options(self, configuration: Path) -> list[str]:
        desired = self.desired
        sockets = self._free_sockets()
        (sockets / CANDIDATE_MARK).touch()
        cache = self.root / "cache"
        make_directory(cache)
        for written in (sockets, cache):
            os.chown(written, SERVICE_USER, SERVICE_USER)
        options = [
            "--network", "host",
            "--user", f"{SERVICE_USER}:{SERVICE_USER}",
            *mount(configuration, CONFIGURATION_FILE),
            *mount(sockets, SOCKET_DIRECTORY, writable=True),
            *mount(cache, CACHE_DIRECTORY, writable=True),
        ]  # fmt: skip
        if desired.secrets_directory:
            options += mount(Path(desired.secrets_directory), desired.secrets_directory)
        for digest in sorted({model.directory_name for model in desired.models}):
            options += mount(self.root / "models" / digest, f"/models/{digest}")
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
            options += mount(self.root / "models" / model.directory_name, f"{server.models_directory}/{model.name}")
        return options


def is_confirmed(container: Mapping[str, Any]) -> bool:
    """Return whether a container has taken over: the engine is to start it each time (`Container.confirm`)."""
    return bool(container["HostConfig"]["RestartPolicy"]["Name"] == "always")


def mount_source(container: Mapping[str, Any], target: str) -> str | None:
    """Return the host's path that the container sees as `target`, None if there is none."""
    return next((str(m["Source"]) for m in container.get("Mounts", ()) if m["Destination"] == target), None)


def endpoint_of(engine: DockerEngine, name: str, protocol: str) -> str | None:
    """Return the URL at which this host asks the running container `name` of the collection's runtime, else None."""
    container = engine.container(name)
    sockets = mount_source(container, SOCKET_DIRECTORY) if container and container["State"]["Running"] else None
    if sockets is None:
        return None
    return f"{'http' if protocol == 'rest' else 'grpc'}+unix://{sockets}/{protocol}.sock"


def check_devices(devices: tuple[str, ...]) -> None:
    """Raise FleetError for the devices that are not on this host."""
    absent = [path for path in devices if not is_cdi_name(path) and not _is_device(path)]
    if absent:
        raise FleetError(
            "A model needs a device that this host does not have",
            where=", ".join(absent),
            seen="no such device",
            remedy="connect it, name the kernel module that makes it in the model's requires.kernel_modules, "
            "or place the model elsewhere",
        )


def check_port(listener: str, ours: bool = False) -> None:
    """Raise FleetError if no server can listen on `listener` (``ADDRESS:PORT``, an IPv6 address in brackets).

    A port that is `ours` is held by a release that will share or leave it: then only the address is checked.
    """
    host, _separator, port = listener.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, 0 if ours else int(port)))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise FleetError(
                f"Port {port} is already taken" if taken else f"The runtime cannot listen on {listener}",
                where=listener,
                seen=error.strerror or str(error),
                remedy="stop the program that listens there (ss --listening --tcp --processes names it) "
                "or choose another port with inference_runtime_rest_port, inference_runtime_grpc_port "
                "or inference_runtime_metrics_port, or with the runtime's ports in edgeml_runtimes"
                if taken
                else "set inference_runtime_listen_address to an address of this host, or to 0.0.0.0 for all of them",
            ) from error


def lacks_address(listeners: Iterable[str]) -> bool:
    """Return whether this host does not have an address of `listeners` (``ADDRESS:PORT``) now."""
    try:
        for listener in listeners:
            check_port(listener, ours=True)
    except FleetError:
        return True
    return False


def _is_device(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _gpu_options(gpus: tuple[str, ...]) -> list[str]:
    """Pass GPUs. The engine reads what follows --gpus as a line of CSV: the quotes keep several of them one field."""
    if not gpus:
        return []
    return ["--gpus", "all" if gpus == ("all",) else f'"device={",".join(gpus)}"']


def _device_options(devices: tuple[str, ...]) -> list[str]:
    """Pass the devices, and the groups that may use them, to a user without rights of its own."""
    options = []
    groups = set()
    for path in devices:
        if is_cdi_name(path):
            options += ["--device", path]
            continue
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
        # Without the second the engine allows as much swap again, and a request would wait for the disk.
        options += ["--memory", f"{limits.memory_mb}m", "--memory-swap", f"{limits.memory_mb}m"]
    if limits.cpus:
        options += ["--cpus", str(limits.cpus)]
    if limits.cpuset:
        options += ["--cpuset-cpus", limits.cpuset]
    if limits.shared_memory_mb:
        options += ["--shm-size", f"{limits.shared_memory_mb}m"]
    return options
