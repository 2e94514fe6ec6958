# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release is, and the container that serves it: the collection's runtime, or any server of the protocol."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import make_directory, replace_file

RELEASE_LABEL = "io.edgeml.release"
USER = 65532  # user and group of the runtime's image
CONFIGURATION_FILE = "/etc/edgeml/runtime.json"
SOCKET_DIRECTORY = "/run/edgeml"
CACHE_DIRECTORY = "/var/cache/edgeml"


@dataclass(frozen=True)
class Model:
    """One model of a release; `digest` and `size` (bytes) are those of its tar blob.

    `options` override how the model's own serving.json has it served. Clients reach it through `protocols` only.
    """

    name: str
    version: str
    repository: str
    digest: str
    size: int
    variant: str = "default"
    golden_cases: int = 0
    p95_ms: float | None = None
    protocol: str = "grpc"
    protocols: tuple[str, ...] = ("rest", "grpc", "mqtt")
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def directory_name(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Limits:
    """What the container may use: MiB, processors, processes and threads. 0 sets no limit of ours."""

    memory_mb: int = 0
    cpus: float = 0
    pids: int = 256
    shared_memory_mb: int = 0


@dataclass(frozen=True)
class ForeignServer:
    """Another server of the Open Inference Protocol. Ports, directory and user are those in its container.

    `user` is numeric, ``uid`` or ``uid:gid``. Each model is mounted at ``<models_directory>/<name of the model>``.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    rest_port: int | None
    grpc_port: int | None
    metrics_port: int | None
    models_directory: str
    user: str

    def ports(self) -> dict[str, int]:
        """Return the port of each protocol that the server speaks, REST first."""
        both = {"rest": self.rest_port, "grpc": self.grpc_port}
        return {protocol: port for protocol, port in both.items() if port}


@dataclass(frozen=True)
class Desired:
    """What shall run on this host: an image by digest, models by digest, the server's configuration.

    `secrets` are the SHA-256 digests (hexadecimal) that the files in `secrets_directory` shall have, by file name;
    None takes the files as they are. For a foreign server, `configuration` holds ``listen`` only: the host's addresses
    that lead to its ports.
    """

    image: str
    image_size: int
    models: tuple[Model, ...]
    configuration: dict[str, Any]
    secrets_directory: str = ""
    secrets: dict[str, str] | None = None
    limits: Limits = Limits()
    environment: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    server: ForeignServer | None = None

    def runtime_configuration(self, purpose: str = "active") -> dict[str, Any]:
        """Return the content of the runtime's configuration file.

        A candidate listens on private sockets only, where it has to show every model.
        """
        if self.server is not None:
            return self.configuration
        models = [
            {
                "name": m.name,
                "version": m.version,
                "digest": m.digest,
                "path": f"/models/{m.directory_name}",
                "options": m.options,
                "protocols": list(m.protocols),
            }
            for m in self.models
        ]
        configuration = {"cache_directory": CACHE_DIRECTORY, **self.configuration, "models": models}
        if purpose == "candidate":
            configuration["listen"] = {
                "rest": [f"unix:{SOCKET_DIRECTORY}/rest.sock"],
                "grpc": [f"unix:{SOCKET_DIRECTORY}/grpc.sock"],
                "metrics": [],
            }
            configuration["models"] = [
                {key: value for key, value in model.items() if key != "protocols"} for model in models
            ]
            configuration.pop("mqtt", None)
        return configuration

    def secret_digests(self) -> dict[str, str]:
        """Return the SHA-256 digest (hexadecimal) of each file with a secret, by file name."""
        if self.secrets is not None:
            return dict(sorted(self.secrets.items()))
        paths = sorted(Path(self.secrets_directory).glob("*")) if self.secrets_directory else []
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def listeners(self) -> set[str]:
        """Return the host's TCP addresses (``ADDRESS:PORT``) on which the release serves."""
        return tcp_listeners(self.configuration)

    def release_id(self) -> str:
        """Return the digest of all that makes this release, secrets by their hash."""
        intent = {
            "image": self.image,
            "configuration": self.runtime_configuration(),
            "models": [[m.name, m.digest] for m in self.models],
            "secrets": self.secret_digests(),
            "limits": asdict(self.limits),
            "environment": self.environment,
            "devices": list(self.devices),
            "server": asdict(self.server) if self.server else None,
        }
        return hashlib.sha256(canonical_json(intent)).hexdigest()


def tcp_listeners(configuration: dict[str, Any]) -> set[str]:
    """Return the TCP addresses of a configuration's ``listen``."""
    return {
        address
        for addresses in configuration.get("listen", {}).values()
        for address in addresses
        if not address.startswith("unix:")
    }


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
            os.chown(written, USER, USER)
        options = [
            "--network", "host" if purpose == "active" else "none",
            "--user", f"{USER}:{USER}",
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
