# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTPS to a registry and to where it sends its clients: connections that are kept, answers that are read in pieces."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from types import TracebackType
from urllib.parse import SplitResult, urljoin, urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import (
    UnknownNameError,
    UnreachableError,
    UntrustedError,
    broken_off,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.proxy import proxy_for

SEND_BLOCK = 1 << 20  # bytes


def led_to(base: str, reference: str, header: str, *, absolute: bool = False) -> str:
    """Return the URL that `reference` in a header of the answer at `base` means; raise FleetError if it is none."""
    try:
        url = reference if absolute else urljoin(base, reference)
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        usable = bool(host) and parts.port != 0 and re.fullmatch("[!-~]+", url) is not None
    except ValueError:  # UnicodeError is one
        usable = False
    if not usable:
        raise FleetError(
            "The registry refers to what is not a valid address",
            where=f"{urlsplit(base).netloc}, header {header}",
            seen=repr(reference.partition("?")[0][:200]),  # a query may hold a secret
            remedy="correct the address that the registry, or the proxy before it, gives its clients",
        )
    return url


class Response:
    """One answer of a registry, read piece by piece. Close it, or use it as a context manager.

    Attributes
    ----------
    status : int
    headers : email.message.Message
    offset : int
        Position in the blob of the first byte delivered; 0 if a Range header was ignored.
    ends_by_close : bool
        Whether the end of the connection is that of the body: nobody can say then whether it is whole.
    """

    def __init__(
        self,
        raw: http.client.HTTPResponse,
        connection: _Connection,
        idle: list[_Connection],
        url: str,
    ) -> None:
        self.status = raw.status
        self.headers: Message = raw.headers
        self.url = url
        self.ends_by_close = raw.length is None and not raw.chunked
        self._raw = raw
        self._connection = connection
        self._idle = idle

    @property
    def offset(self) -> int:
        found = re.match(r"bytes (\d+)-", self.headers.get("Content-Range") or "")
        return int(found[1]) if self.status == 206 and found else 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, b"" at the end. Raise TransientError if the transfer breaks off before that."""
        try:
            data = self._raw.read(size)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise broken_off(self.url, error) from error
        # http.client reports an early end only for chunked bodies.
        if not data and self._raw.length:
            self._connection.close()
            raise broken_off(self.url, f"{self._raw.length} bytes are missing")
        return data

    def read_all(self, limit: int) -> bytes:
        """Return the whole body, or its first `limit` bytes."""
        data = b""
        while len(data) < limit and (block := self.read(limit - len(data))):
            data += block
        return data

    def close(self) -> None:
        """Keep the connection for the next request if everything was read, close it otherwise."""
        if self._raw.isclosed() and self._connection.sock is not None:
            self._idle.append(self._connection)
        else:
            self._connection.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Connection(http.client.HTTPSConnection):
    """A connection to a host of which the IP address may be known without a name service, or that is behind a proxy."""

    def __init__(self, address: str, ip_address: str, tls: ssl.SSLContext, timeout: float, ahead: int) -> None:
        super().__init__(address, timeout=timeout, context=tls, blocksize=SEND_BLOCK)
        self._ip_address = ip_address.strip("[]")
        self._tls = tls
        self._ahead = ahead
        # An address that the inventory gives is one that is reached directly.
        self.proxy = None if ip_address else proxy_for(self.host, self.port, os.environ)

    @property
    def way(self) -> str:
        """How the host is reached, for messages."""
        return f" through the proxy {self.proxy.shown}" if self.proxy else ""

    def connect(self) -> None:
        """Connect to the IP address or through the proxy, and ask for the host's name there."""
        if self.proxy is not None:
            connected = self.proxy.connect(self.host, self.port, self.timeout)
        else:
            connected = socket.create_connection((self._ip_address or self.host, self.port), self.timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._ahead:
            # Else the system takes megabytes at the line's full rate before anybody reads them.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._ahead)
        self.sock = self._tls.wrap_socket(connected, server_hostname=self.host)


class Connections:
    """Connections of one client, always over TLS. Those to `address` go to `ip_address` if one is given.

    Others go through the proxy that the environment names, but for what is on this host and what no_proxy excepts.

    An instance serves one thread at a time.
    """

    def __init__(self, address: str, ip_address: str, tls: ssl.SSLContext, timeout: float, ahead: int = 0) -> None:
        self._ahead = ahead
        self._address = address
        self._ip_address = ip_address
        self._tls = tls
        self._timeout = timeout
        self._idle: dict[str, list[_Connection]] = {}

    def another(self, ahead: int = 0) -> Connections:
        """Return the same without a connection yet, for another thread; `ahead` as Source.another takes it."""
        return Connections(self._address, self._ip_address, self._tls, self._timeout, ahead)

    def close(self) -> None:
        """Close the connections that are kept between requests."""
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    def send(self, method: str, url: SplitResult, headers: Mapping[str, str], body: bytes | Path = b"") -> Response:
        """Send one request; what answers is a Response whatever its status. Raise FleetError if nothing does."""
        shown = f"{url.scheme}://{url.netloc}{url.path}"  # a query may hold a secret of an upload or a signed address
        if url.scheme != "https":
            raise FleetError(
                "The registry refers to an address without TLS",
                where=f"registry {self._address}",
                seen=shown,
                remedy="let the registry know its https address (behind a proxy: X-Forwarded-Proto)",
            )
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        idle = self._idle.setdefault(url.netloc, [])
        while True:
            reused = bool(idle)
            connection = idle.pop() if reused else self._connect(url.netloc)
            size = len(body) if isinstance(body, bytes) else body.stat().st_size
            length = {"Content-Length": str(size)} if size or method in ("POST", "PUT") else {}
            with contextlib.ExitStack() as stack:
                content = body if isinstance(body, bytes) else stack.enter_context(body.open("rb"))
                try:
                    # A server that refuses a body answers before it has read all of it.
                    with contextlib.suppress(BrokenPipeError):
                        connection.request(
                            method, target, content or None, {"User-Agent": "edgeml.fleet", **length, **headers}
                        )
                    return Response(connection.getresponse(), connection, idle, shown)
                except ssl.SSLCertVerificationError as error:
                    connection.close()
                    raise UntrustedError(
                        "The registry's certificate is not trusted",
                        where=shown + connection.way,
                        seen=error.verify_message,
                        remedy="give the certificate authority's file as ca_file, and an address named in the "
                        "certificate; a wrong clock also leads here",
                    ) from error
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    if reused and not body:  # the server had closed it meanwhile
                        continue
                    kind = UnknownNameError if isinstance(error, socket.gaierror) else UnreachableError
                    raise kind(
                        "The registry cannot be reached",
                        where=shown + connection.way,
                        seen=str(error) or type(error).__name__,
                        remedy="check the address, that the registry runs with TLS, and the network between",
                    ) from error

    def _connect(self, address: str) -> _Connection:
        ip_address = self._ip_address if address.lower() == self._address.lower() else ""
        return _Connection(address, ip_address, self._tls, self._timeout, self._ahead)
