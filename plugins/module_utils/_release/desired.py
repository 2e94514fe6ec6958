# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to run on a host: an image and models by digest, their configuration, and the release's id."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json

SOCKET_DIRECTORY = "/run/edgeml"
CACHE_DIRECTORY = "/var/cache/edgeml"


@dataclass(frozen=True)
class Shadow:
    """How live requests judge a candidate: a `share` of them, at most so many `requests` of at most so many `seconds`,
    of whose answers a share of `max_different` may differ from those of the release that serves.
    """

    share: float
    seconds: float
    requests: int
    max_different: float


@dataclass(frozen=True)
class Model:
    """One model of a release; `digest` and `size` (bytes) are those of its tar blob.

    `options` override how the model's own serving.json has it served. Clients reach it through `protocols` only.
    What it is judged by before it takes traffic (`golden_cases` to `protocol`, `shadow`) is no part of a release's id.
    """

    name: str
    version: str
    repository: str
    digest: str
    size: int
    variant: str = "default"
    golden_cases: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_regression: float | None = None
    concurrency: int = 0
    protocol: str = "grpc"
    protocols: tuple[str, ...] = ("rest", "grpc", "mqtt")
    options: dict[str, Any] = field(default_factory=dict)
    shadow: Shadow | None = None

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Model:
        """Return the model whose fields have these values, lists and mappings as JSON has them."""
        shadow = values.get("shadow")
        return cls(
            **{**values, "protocols": tuple(values["protocols"]), "shadow": Shadow(**shadow) if shadow else None}
        )

    @property
    def has_objective(self) -> bool:
        return any(allowed is not None for allowed in (self.p50_ms, self.p95_ms, self.p99_ms))

    @property
    def directory_name(self) -> str:
        return self.digest.partition(":")[2]


@dataclass(frozen=True)
class Limits:
    """What the container may use: MiB, processors, processes and threads. 0 sets no limit of ours.

    `cpuset` are the numbers of the processors that it is pinned to, such as ``0-1,3``; empty for any.
    """

    memory_mb: int = 0
    cpus: float = 0
    pids: int = 256
    shared_memory_mb: int = 0
    cpuset: str = ""


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
    """What is to run on this host: an image by digest, models by digest, the server's configuration.

    `secrets` are the SHA-256 digests (hexadecimal) that the files in `secrets_directory` must have, by file name;
    None takes the files as they are. For a foreign server, `configuration` holds ``listen`` only: the host's addresses
    that lead to its ports. `gpus` are numbers or ids of GPUs that the engine passes, or ``all`` alone; `devices` are
    paths below /dev, or names of the Container Device Interface (CDI).
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
    gpus: tuple[str, ...] = ()
    server: ForeignServer | None = None

    def runtime_configuration(self) -> dict[str, Any]:
        """Return the content of the runtime's configuration file, without what the container itself adds."""
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
        return {"cache_directory": CACHE_DIRECTORY, **self.configuration, "models": models}

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
        limits: dict[str, Any] = asdict(self.limits)
        if not limits["cpuset"]:
            del limits["cpuset"]  # releases from before it keep their id
        intent = {
            "image": self.image,
            "configuration": self.runtime_configuration(),
            "models": [[m.name, m.digest] for m in self.models],
            "secrets": self.secret_digests(),
            "limits": limits,
            "environment": self.environment,
            "devices": list(self.devices),
            "server": asdict(self.server) if self.server else None,
            **({"gpus": list(self.gpus)} if self.gpus else {}),  # likewise
        }
        return hashlib.sha256(canonical_json(intent)).hexdigest()

    def attempt_id(self, release_id: str) -> str:
        """Return the digest of the release and of all that it is judged by: what a refusal holds for."""
        gates = [
            [m.name, m.golden_cases, m.p50_ms, m.p95_ms, m.p99_ms, m.max_regression, m.concurrency, m.protocol]
            + ([asdict(m.shadow)] if m.shadow else [])
            for m in self.models
        ]
        return hashlib.sha256(canonical_json({"release": release_id, "gates": gates})).hexdigest()

    def as_record(self) -> dict[str, Any]:
        """Return all of it in a form that JSON can hold; `from_record` makes the same of it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Desired:
        """Return what `as_record` recorded."""
        server = record["server"]
        return cls(
            **{
                **record,
                "models": tuple(map(Model.from_values, record["models"])),
                "limits": Limits(**record["limits"]),
                "devices": tuple(record["devices"]),
                "gpus": tuple(record.get("gpus", ())),
                "server": ForeignServer(**{**server, "command": tuple(server["command"])}) if server else None,
            }
        )


def tcp_listeners(configuration: dict[str, Any]) -> set[str]:
    """Return the TCP addresses of a configuration's ``listen``."""
    return {
        address
        for addresses in configuration.get("listen", {}).values()
        for address in addresses
        if not address.startswith("unix:")
    }


def ports_of(listeners: set[str]) -> set[str]:
    """Return the ports of TCP addresses (``ADDRESS:PORT``)."""
    return {listener.rpartition(":")[2] for listener in listeners}
