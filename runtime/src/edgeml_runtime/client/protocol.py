# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a client of the protocol can ask, whichever way it goes, and where and as whom it asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeml_runtime.errors import RequestError
from edgeml_runtime.tensors import Array, TensorSpec, from_raw, from_values

#: Input tensors; arrays have the dtypes of ``tensors.DTYPES`` and the shapes to send.
Inputs = Sequence[tuple[TensorSpec, Array]]

#: Of a request, such as sequence_id.
Parameters = Mapping[str, str | int | bool]


class Unreachable(Exception):
    """No answer: nobody listens, TLS fails, or it takes too long."""


class Refused(Exception):
    """The server answers with an error, or with what the protocol does not foresee."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask. ``path``: of a unix socket, else empty. ``prefix``: of REST paths, without a final slash."""

    url: str
    grpc: bool
    tls: bool
    host: str
    port: int
    path: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Access:
    """As whom to ask. PEM files: ``ca`` to verify the server (None: the system's), ``certificate`` and ``key`` to show.

    ``timeout``: seconds to wait for a connection and for each answer.
    """

    ca: Path | None
    certificate: Path | None
    key: Path | None
    token: str | None
    timeout: float


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name, version and extensions of a server."""

    name: str
    version: str
    extensions: Sequence[str]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server tells of a model; -1 is a dimension of any size. Some servers know no tensors."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of a server's repository index. ``state``: READY, UNAVAILABLE, …; may be empty."""

    name: str
    version: str
    state: str
    reason: str


class Client(Protocol):
    """One connection to a server. Every method raises Unreachable or Refused; an empty version means the server's own.

    An inference is three steps, so that the middle one can be timed alone: ``encode``, ``exchange``, ``decode``.
    """

    def live(self) -> bool:
        """Whether the server lives."""

    def ready(self) -> bool:
        """Whether the server is ready."""

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself."""

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model is ready."""

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """What the server says of a model."""

    def index(self) -> list[IndexEntry]:
        """All models of the server; an extension of the protocol that not every server has."""

    def encode(self, name: str, version: str, inputs: Inputs, outputs: Sequence[str], parameters: Parameters) -> Any:
        """A request, ready to be sent, once or many times. No outputs: all of them."""

    def exchange(self, request: Any) -> Any:
        """Send a request and receive the whole answer."""

    def decode(self, answer: Any) -> dict[str, Array]:
        """The output tensors of an answer, by name."""

    def close(self) -> None:
        """Close the connection."""


def tensor(name: str, datatype: str, shape: Sequence[int], values: object = None, raw: bytes | None = None) -> Array:
    """An output tensor from raw bytes or JSON values. Raises Refused."""
    spec = TensorSpec(name, datatype, ())
    try:
        checked = spec.check(datatype, list(shape))
        return from_values(spec, checked, values) if raw is None else from_raw(spec, checked, raw)
    except RequestError as error:
        raise Refused(f"output '{name}' cannot be read: {error}") from None
    except KeyError:
        raise Refused(f"output '{name}' has the unknown datatype {datatype!r}") from None
