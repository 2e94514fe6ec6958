# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a configuration says, once it is read and checked: see ``config_file`` and README.md."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeml_runtime.document import Reader
from edgeml_runtime.serving import EngineOptions, ServingOptions, read_overrides

LOG_LEVELS = ("debug", "info", "warning", "error")
PROTOCOLS = ("rest", "grpc", "metrics", "admin")
INFERENCE_PROTOCOLS = ("rest", "grpc", "mqtt")


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen on: a TCP address, or a unix socket when ``path`` is set."""

    text: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_private(self) -> bool:
        """Only processes on this host can connect."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the TLS listeners, PEM. With ``client_ca``, clients must present a certificate of that CA."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one client may do, told by its bearer token or by the common name of its certificate.

    ``models``: names, or None for all. ``manage``: may load and unload models.
    """

    token: str | None
    certificate_name: str | None
    models: frozenset[str] | None
    manage: bool


@dataclass(frozen=True, slots=True)
class Mqtt:
    """The broker to serve through; requests come on ``<topic_prefix>/<device>/<model>/infer``.

    ``receive_maximum``: requests that the broker may have under way to this server at once.
    """

    host: str
    port: int
    device: str
    topic_prefix: str
    ca: Path | None
    certificate: Path | None
    key: Path | None
    username: str | None
    password: str | None = field(repr=False)
    keep_alive_seconds: int
    receive_maximum: int
    session_expiry_seconds: int
    publish_results: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a client can ask for. Bytes, counts and seconds."""

    body_bytes: int = 64 * 1024 * 1024
    buffered_bytes: int = 256 * 1024 * 1024
    receiving_bytes: int = 8 * 1024 * 1024
    unsent_bytes: int = 256 * 1024 * 1024
    unsent_listener_bytes: int = 128 * 1024 * 1024
    unsent_connection_bytes: int = 64 * 1024 * 1024
    header_bytes: int = 16 * 1024
    tensors: int = 64
    elements: int = 2**26
    dimensions: int = 16
    strings: int = 2**18
    string_bytes: int = 2**20
    connections: int = 1024
    receive_seconds: float = 30.0
    idle_seconds: float = 75.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model to serve; ``path`` is the unpacked model directory, ``digest`` empty when none was given.

    ``overrides`` are the model's ``options``, checked; ``where`` names them in errors. For clients of another
    protocol than ``protocols`` there is no such model.
    """

    name: str
    version: str
    digest: str
    path: Path
    overrides: dict[str, Any]
    where: str = field(compare=False)
    protocols: tuple[str, ...] = INFERENCE_PROTOCOLS

    def override(self, options: ServingOptions) -> ServingOptions:
        """The options with the overrides of this configuration. Raises ConfigurationError."""
        return read_overrides(Reader(self.where), self.overrides, "options", options)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. Of several versions of a model, the first is the one that unnamed versions mean."""

    rest: tuple[Address, ...]
    grpc: tuple[Address, ...]
    metrics: tuple[Address, ...]
    admin: tuple[Address, ...]
    mqtt: Mqtt | None
    tls: Tls | None
    grants: tuple[Grant, ...]
    models: tuple[ModelConfig, ...]
    engine: EngineOptions
    cache_directory: Path | None
    limits: Limits
    log_level: str
    log_requests: bool
    drain_seconds: float
