# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every client of the Open Inference Protocol v2 offers, whatever carries it."""

from __future__ import annotations

import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

LONGEST_QUOTE = 300
#: Two names of one thing since Python 3.10.
TIMEOUTS = (TimeoutError, socket.timeout)


class UnreachableError(FleetError):
    """The server gave no answer: it may still be starting, so that asking again can help."""


class SlowError(UnreachableError):
    """No answer came within the time that the caller gave; nobody said that there is no server."""


def is_lost(error: FleetError) -> bool:
    """Return whether no answer came, though not for slowness: the server may be gone."""
    return isinstance(error, UnreachableError) and not isinstance(error, SlowError)


BINARY_EXTENSION = "binary_tensor_data"


@dataclass(frozen=True)
class Access:
    """How to reach a server and be let in.

    Parameters
    ----------
    endpoint : str
        The address as the user wrote it, for messages.
    address : str
        `host:port`, or the path of a unix socket.
    unix : bool
        Whether `address` is a path.
    tls : bool
        Whether the connection is encrypted.
    ca_file, client_certificate, client_key : str or None
        PEM files.
    server_name : str or None
        The name that the server's certificate must carry, where it is not the host of the address.
    bearer_token : str or None
        Secret; never part of a message.
    timeout : float
        Seconds for one request and its answer.
    """

    endpoint: str
    address: str
    unix: bool
    tls: bool
    ca_file: str | None
    client_certificate: str | None
    client_key: str | None
    server_name: str | None
    bearer_token: str | None = field(repr=False)
    timeout: float

    @property
    def authority(self) -> str:
        """The server's name in the headers of requests."""
        if self.server_name:
            return f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return "localhost" if self.unix else self.address


@dataclass(frozen=True)
class Status:
    """The answer to a health question; true if it is yes, and what was seen if it is no."""

    ok: bool
    seen: str

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class ServerMetadata:
    """Name, version and protocol extensions of a server."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class TensorMetadata:
    """Name, datatype and shape of a model's input or output; a dynamic dimension has the size -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says about a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    provider: str = ""  # what computes it, where the server says so


@dataclass(frozen=True)
class PreparedRequest:
    """An inference request, ready to be sent any number of times."""

    model: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class RawResponse:
    """An inference response as it came; `json_size` is the size of its JSON part where binary tensors follow."""

    model: str
    body: bytes
    json_size: int | None


class Client(ABC):
    """One connection to one server, for one request after another. Not for several threads.

    Every method raises `UnreachableError` where no answer came and `FleetError` where the server refused. An empty
    version leaves the choice to the server.
    """

    def __init__(self, access: Access) -> None:
        self.endpoint = access.endpoint
        self.timeout = access.timeout

    @abstractmethod
    def live(self) -> Status:
        """Return whether the server runs."""

    @abstractmethod
    def ready(self) -> Status:
        """Return whether the server and all its models can answer."""

    @abstractmethod
    def server_metadata(self) -> ServerMetadata:
        """Return name, version and extensions of the server."""

    @abstractmethod
    def model_ready(self, name: str, version: str = "") -> Status:
        """Return whether the model can answer. A model that the server does not know is not ready."""

    @abstractmethod
    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Return inputs and outputs of a model."""

    @abstractmethod
    def prepare(
        self, name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str] = (), *, binary: bool = True
    ) -> PreparedRequest:
        """Return an inference request for `send`.

        Parameters
        ----------
        name, version : str
            The model.
        inputs : sequence of Tensor
            One tensor for each input of the model.
        outputs : sequence of str
            Names of the outputs to return; all if empty.
        binary : bool
            Over REST, whether tensors travel in the binary tensor data extension and not in JSON. gRPC always carries
            raw contents.
        """

    @abstractmethod
    def send(self, request: PreparedRequest) -> RawResponse:
        """Send a request and read the response; nothing else, so that the time it takes is the server's."""

    @abstractmethod
    def decode(self, response: RawResponse) -> list[Tensor]:
        """Return the output tensors of a response."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def infer(
        self, name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str] = (), *, binary: bool = True
    ) -> list[Tensor]:
        """Return what the model answers to `inputs` (parameters as in `prepare`)."""
        return self.decode(self.send(self.prepare(name, version, inputs, outputs, binary=binary)))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def unconnected(self, error: OSError) -> FleetError:
        """Return the error for a connection that could not be made, or that broke."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return self.untrusted(error.verify_message)
        if isinstance(error, TIMEOUTS):
            return self.slow(str(error))
        if isinstance(error, ssl.SSLError):
            return FleetError(
                "TLS with the inference server failed",
                where=self.endpoint,
                seen=error.reason or str(error),
                remedy="check that this port speaks TLS, and give client_certificate and client_key if asked for",
            )
        return self.unreachable(error.strerror or str(error) or type(error).__name__)

    def unreachable(self, seen: str) -> UnreachableError:
        """Return the error for a server that gave no answer."""
        return UnreachableError(
            "The inference server does not answer",
            where=self.endpoint,
            seen=quote(seen),
            remedy="start the server, read its log, or correct scheme, address and TLS options",
        )

    def slow(self, seen: str) -> SlowError:
        """Return the error for a server that took longer than the caller waits."""
        return SlowError(
            f"The inference server is slow: no answer within {self.timeout:g} s",
            where=self.endpoint,
            seen=quote(seen),
            remedy="give it more time (timeout), or see what keeps the host busy; a wrong address can look the same",
        )

    def untrusted(self, seen: str) -> FleetError:
        """Return the error for a server whose certificate is not accepted."""
        return FleetError(
            "The certificate of the inference server is not trusted",
            where=self.endpoint,
            seen=quote(seen),
            remedy="give the ca_file that issued it and, when connecting by address, the server_name it carries",
        )

    def denied(self, seen: str) -> FleetError:
        """Return the error for missing or wrong credentials."""
        return FleetError(
            "The inference server refused the credentials",
            where=self.endpoint,
            seen=quote(seen),
            remedy="give the bearer_token, or client_certificate and client_key, that the server accepts",
        )

    def refused(self, subject: str, seen: str) -> FleetError:
        """Return the error for a request that the server answered with an error."""
        return FleetError(
            f"The inference server refused a request for {subject}",
            where=self.endpoint,
            seen=quote(seen),
            remedy="compare the names, versions and tensors of the request with the server's models, and read its log",
        )

    def misunderstood(self, subject: str, seen: str) -> FleetError:
        """Return the error for an answer that is not as the protocol says."""
        return FleetError(
            f"The answer to a request for {subject} does not follow the Open Inference Protocol v2",
            where=self.endpoint,
            seen=quote(seen),
            remedy="check that the endpoint's scheme and port are those of an inference server",
        )


def quote(text: Any) -> str:
    """Return a server's words on one line, shortened, to be put into a sentence."""
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"


def model_subject(name: str, version: str = "") -> str:
    """Return how messages name a model."""
    return f"model '{name}' version {version}" if version else f"model '{name}'"


def unreadable(option: str, path: str | None, error: OSError) -> FleetError:
    """Return the error for a PEM file that cannot be used."""
    return FleetError(
        f"The {option} cannot be used",
        where=str(path),
        seen=error.strerror or str(error),
        remedy="give the path of a fitting PEM file on the host where the module runs",
    )
