# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of an OCI registry (distribution specification 1.1) over TLS, with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    MANIFEST_TYPES,
    check_digest,
    check_repository,
    check_tag,
    sha256_digest,
)

ATTEMPTS = 3
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubles with each further one
MAX_REDIRECTS = 5
SEND_BLOCK = 1 << 20  # bytes
MAX_MANIFEST = 4 << 20  # bytes; what the specification asks registries to accept
MAX_ANSWER = 64 << 10  # bytes of any other answer that is not a blob
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})

# Argument specification of the option that names a registry (documentation fragment edgeml.fleet.registry).
REGISTRY_ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "address": {"type": "str", "required": True},
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "ca_file": {"type": "path"},
        "ca_certificate": {"type": "str"},
        "ip_address": {"type": "str"},
    },
    "required_together": [("username", "password")],
    "mutually_exclusive": [("ca_file", "ca_certificate")],
}

Result = TypeVar("Result")


class TransientError(FleetError):
    """A failure that another attempt may cure: a lost connection, an overloaded or failing server."""


class Response:
    """One answer of a registry, read piece by piece. Close it, or use it as a context manager.

    Attributes
    ----------
    status : int
    headers : email.message.Message
    offset : int
        Position in the blob of the first byte delivered; 0 if a Range header was ignored.
    """

    def __init__(
        self,
        raw: http.client.HTTPResponse,
        connection: http.client.HTTPSConnection,
        idle: list[http.client.HTTPSConnection],
        url: str,
    ) -> None:
        self.status = raw.status
        self.headers: Message = raw.headers
        self.url = url
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
            raise _broken_off(self.url, error) from error
        # http.client reports an early end only for chunked bodies.
        if not data and self._raw.length:
            self._connection.close()
            raise _broken_off(self.url, f"{self._raw.length} bytes are missing")
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
    """A connection to a host of which the IP address may be known without a name service."""

    def __init__(self, address: str, ip_address: str, tls: ssl.SSLContext, timeout: float) -> None:
        super().__init__(address, timeout=timeout, context=tls, blocksize=SEND_BLOCK)
        self._ip_address = ip_address
        self._tls = tls

    def connect(self) -> None:
        """Connect to the IP address, and ask for the host's name there."""
        if not self._ip_address:
            super().connect()
            return
        connected = socket.create_connection((self._ip_address, self.port), self.timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(connected, server_hostname=self.host)


class Registry:
    """One registry at `address`, always over TLS.

    Parameters
    ----------
    address : str
        ``host`` or ``host:port``, without scheme and path.
    username, password : str
        Sent as HTTP Basic, or to the registry's token service when it asks for a Bearer token. Empty: anonymous.
    ca_file : str
        PEM file of the certificate authorities to trust instead of the system's. Empty: the system's.
    timeout : float
        Seconds without network progress after which an attempt fails.
    ca_certificate : str
        PEM text instead of `ca_file`.
    ip_address : str
        Where to connect to, instead of asking a name service for `address`.

    patient : bool
        Whether a failed call is repeated.

    Every method raises FleetError. After lost connections and answers of an overloaded or failing server a call is
    repeated with a growing pause. An instance serves one thread at a time.
    """

    def __init__(
        self,
        address: str,
        username: str = "",
        password: str = "",
        ca_file: str = "",
        timeout: float = 60,
        ca_certificate: str = "",
        ip_address: str = "",
        patient: bool = True,
    ) -> None:
        if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", address):
            raise FleetError(
                "Not a registry address",
                where=repr(address),
                remedy="give host or host:port, without https:// and without a path",
            )
        self.address = address
        self._username = username
        self._password = password
        self._timeout = timeout
        self._ip_address = ip_address
        self._patient = patient
        self._idle: dict[str, list[http.client.HTTPSConnection]] = {}
        self._basic = ""
        self._tokens: dict[tuple[str, bool], str] = {}  # by repository and whether it may write
        try:
            self._tls = ssl.create_default_context(cafile=ca_file or None, cadata=ca_certificate or None)
        except OSError as error:  # ssl.SSLError is one
            raise FleetError(
                "The trusted certificate authorities cannot be used",
                where=ca_file or "ca_certificate",
                seen=str(error),
                remedy="give the path of a readable PEM file, or its text",
            ) from error
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, patient: bool = True) -> Registry:
        """Return the registry that a module's option with REGISTRY_ARGUMENT names."""
        return cls(
            options["address"],
            options.get("username") or "",
            options.get("password") or "",
            options.get("ca_file") or "",
            ca_certificate=options.get("ca_certificate") or "",
            ip_address=options.get("ip_address") or "",
            patient=patient,
        )

    def close(self) -> None:
        """Close the connections that are kept between calls."""
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    def ping(self) -> None:
        """Check that the registry answers and accepts the user name and password (end-1)."""
        self._call("GET", "/v2/", expect={200})

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type (end-3).

        `reference` is a tag or a digest; bytes that do not have that digest raise FleetError.
        """
        path = _manifest_path(repository, reference)
        _, headers, data = self._call(
            "GET",
            path,
            repository,
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
            expect={200},
            limit=MAX_MANIFEST + 1,
        )
        if len(data) > MAX_MANIFEST:
            raise FleetError(
                "The manifest is too large",
                where=self._url(path),
                seen=f"more than {MAX_MANIFEST} bytes",
                remedy="check that the reference names a manifest",
            )
        if ":" in reference and sha256_digest(data) != reference:
            raise FleetError(
                "The registry delivered a manifest that has another digest than the one asked for",
                where=self._url(path),
                seen=sha256_digest(data),
                remedy="its storage is damaged or something changes its answers: remove and publish the content again",
            )
        return data, (headers.get("Content-Type") or "").partition(";")[0].strip()

    def has_manifest(self, repository: str, reference: str) -> bool:
        """Return whether the repository holds this tag or digest (end-3, HEAD)."""
        return self.manifest_digest(repository, reference) is not None

    def manifest_digest(self, repository: str, reference: str) -> str | None:
        """Return the digest of the manifest under a tag or digest, None if the repository does not hold it."""
        status, headers, _ = self._call(
            "HEAD",
            _manifest_path(repository, reference),
            repository,
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
            expect={200, 404},
        )
        if status == 404:
            return None
        # Stating the digest is optional for a registry.
        stated = headers.get("Docker-Content-Digest")
        return stated or sha256_digest(self.get_manifest(repository, reference)[0])

    def has_blob(self, repository: str, digest: str) -> bool:
        """Return whether the repository holds this blob (end-2, HEAD)."""
        status, _, _ = self._call("HEAD", _blob_path(repository, digest), repository, expect={200, 404})
        return status == 200

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> Response:
        """Start to read a blob (end-2), from byte `offset` if the registry can (RFC 9110 section 14).

        The caller looks at the answer's `offset` and verifies the digest.
        """
        path = _blob_path(repository, digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = _repeat(lambda: self._exchange("GET", path, repository, headers=headers))
        if response.status in (200, 206) and response.offset in (0, offset):
            return response
        try:
            raise self._failure(response.status, response.headers, response.read_all(MAX_ANSWER), response.url)
        finally:
            response.close()

    def push_blob(self, repository: str, source: Path | bytes, digest: str) -> bool:
        """Send a file or bytes as a blob (end-4a, end-6); return False, nothing sent, if the repository has it."""
        if self.has_blob(repository, digest):
            return False
        _repeat(lambda: self._upload(repository, source, digest))
        return True

    def mount_blob(self, repository: str, digest: str, from_repository: str) -> bool:
        """Let `repository` hold a blob of `from_repository` too (end-11); return False if the registry did not."""
        check_digest(digest, f"registry {self.address}")
        check_repository(from_repository, f"registry {self.address}")
        path = _uploads_path(repository)
        query = urlencode({"mount": digest, "from": from_repository})
        status, headers, _ = self._call("POST", f"{path}?{query}", repository, write=True, expect={201, 202})
        if status == 202:  # an upload was opened instead
            upload = urljoin(self._url(path), headers.get("Location") or "")
            self._call("DELETE", upload, repository, write=True, expect={200, 202, 204, 404, 405})
        return status == 201

    def push_manifest(self, repository: str, reference: str, data: bytes, media_type: str) -> None:
        """Store a manifest under a tag or under its digest (end-7)."""
        path = _manifest_path(repository, reference)
        headers = {"Content-Type": media_type}
        self._call("PUT", path, repository, write=True, headers=headers, body=data, expect={201})

    def _upload(self, repository: str, source: Path | bytes, digest: str) -> None:
        path = _uploads_path(repository)
        with self._exchange("POST", path, repository, write=True) as response:
            answer = response.read_all(MAX_ANSWER)
            if response.status != 202:
                raise self._failure(response.status, response.headers, answer, response.url)
        location = urljoin(self._url(path), response.headers.get("Location") or "")
        location += ("&" if urlsplit(location).query else "?") + urlencode({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        with self._exchange("PUT", location, repository, write=True, headers=headers, body=source) as response:
            answer = response.read_all(MAX_ANSWER)
            if response.status != 201:
                raise self._failure(response.status, response.headers, answer, response.url)

    def _call(
        self,
        method: str,
        target: str,
        repository: str = "",
        *,
        write: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        expect: set[int],
        limit: int = MAX_ANSWER,
    ) -> tuple[int, Message, bytes]:
        """Make a request whose answer is small; any status but the expected ones raises FleetError."""

        def attempt() -> tuple[int, Message, bytes]:
            with self._exchange(method, target, repository, write=write, headers=headers, body=body) as response:
                data = response.read_all(limit)
                if response.status not in expect:
                    raise self._failure(response.status, response.headers, data, response.url)
                return response.status, response.headers, data

        return _repeat(attempt) if self._patient else attempt()

    def _exchange(
        self,
        method: str,
        target: str,
        repository: str,
        *,
        write: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | Path = b"",
    ) -> Response:
        """Send one request; answer one request for authentication, follow redirects of GET and HEAD."""
        url = urljoin(self._url("/"), target)
        challenged = False
        redirects = 0
        while True:
            parts = urlsplit(url)
            trusted = parts.netloc.lower() == self.address.lower()
            authorization = (self._basic or self._tokens.get((repository, write), "")) if trusted else ""
            sent = dict(headers or {}) | ({"Authorization": authorization} if authorization else {})
            response = self._send(method, parts, sent, body)
            if response.status == 401 and trusted and not challenged:
                challenged = True
                _discard(response)
                if self._authenticate(response.headers, repository, write):
                    continue
                raise self._failure(401, response.headers, b"", response.url)
            if response.status in REDIRECT_STATUS and method in ("GET", "HEAD") and redirects < MAX_REDIRECTS:
                redirects += 1
                _discard(response)
                url = urljoin(url, response.headers.get("Location") or "")
                continue
            return response

    def _send(self, method: str, url: SplitResult, headers: Mapping[str, str], body: bytes | Path) -> Response:
        shown = f"{url.scheme}://{url.netloc}{url.path}"  # a query may hold a secret of an upload or a signed address
        if url.scheme != "https":
            raise FleetError(
                "The registry refers to an address without TLS",
                where=f"registry {self.address}",
                seen=shown,
                remedy="let the registry know its https address (behind a proxy: X-Forwarded-Proto)",
            )
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        idle = self._idle.setdefault(url.netloc, [])
        while True:
            reused = bool(idle)
            connection = idle.pop() if reused else self._connection(url.netloc)
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
                    raise FleetError(
                        "The registry's certificate is not trusted",
                        where=shown,
                        seen=error.verify_message,
                        remedy="give the certificate authority's file as ca_file, and an address named in the "
                        "certificate; a wrong clock also leads here",
                    ) from error
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    if reused and not body:  # the server had closed it meanwhile
                        continue
                    raise TransientError(
                        "The registry cannot be reached",
                        where=shown,
                        seen=str(error) or type(error).__name__,
                        remedy="check the address, that the registry runs with TLS, and the network between",
                    ) from error

    def _connection(self, address: str) -> http.client.HTTPSConnection:
        ip_address = self._ip_address if address.lower() == self.address.lower() else ""
        return _Connection(address, ip_address, self._tls, self._timeout)

    def _authenticate(self, headers: Message, repository: str, write: bool) -> bool:
        """Prepare what the registry asks for in WWW-Authenticate (RFC 9110 section 11); return False if it cannot."""
        for challenge in headers.get_all("WWW-Authenticate") or []:
            scheme, _, rest = str(challenge).partition(" ")
            if scheme.lower() == "basic" and self._username:
                pair = f"{self._username}:{self._password}".encode()
                self._basic = "Basic " + base64.b64encode(pair).decode()
                return True
            if scheme.lower() == "bearer":
                parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
                self._tokens[repository, write] = "Bearer " + self._token(parameters)
                return True
        return False

    def _token(self, challenge: Mapping[str, str]) -> str:
        """Ask the registry's token service for a Bearer token (distribution, "Token authentication")."""
        query = [("service", challenge["service"])] if "service" in challenge else []
        query += [("scope", scope) for scope in challenge.get("scope", "").split()]
        realm = urlsplit(challenge.get("realm", ""))
        realm = realm._replace(query="&".join(filter(None, (realm.query, urlencode(query)))))
        headers = {}
        if self._username:
            pair = f"{self._username}:{self._password}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        with self._send("GET", realm, headers, b"") as response:
            answer = response.read_all(MAX_ANSWER)
            if response.status != 200:
                raise self._failure(response.status, response.headers, answer, response.url)
        with contextlib.suppress(ValueError, AttributeError):
            fields = json.loads(answer)
            token = fields.get("token") or fields.get("access_token")
            if isinstance(token, str) and token.isascii() and token.isprintable():
                return token
        raise FleetError(
            "The registry's token service sent no token",
            where=response.url,
            remedy="check the token service that the registry is configured with",
        )

    def _failure(self, status: int, headers: Message, body: bytes, where: str) -> FleetError:
        seen = f"HTTP {status}{_error_text(body)}"
        if status == 401 and self._username:
            return FleetError(
                "The registry refused the user name and password",
                where=where,
                seen=f"{seen}, user name {self._username}",
                remedy="correct the user name or the password",
            )
        if status == 401:
            return FleetError(
                "The registry asks for a user name and a password",
                where=where,
                seen=seen,
                remedy="give username and password",
            )
        if status == 403:
            return FleetError(
                "The registry does not allow this to the user",
                where=where,
                seen=f"{seen}, user name {self._username or '(none)'}",
                remedy="give the user the right, or use another one",
            )
        if status == 404:
            return FleetError(
                "The registry does not hold this",
                where=where,
                seen=seen,
                remedy="check the name, or publish it first",
            )
        if status in TRANSIENT_STATUS:
            return TransientError(
                "The registry failed to answer the request",
                where=where,
                seen=seen,
                remedy="look into its log (a full disk or damaged storage also lead here), then try again",
            )
        return FleetError(
            "The registry gave an unexpected answer",
            where=where,
            seen=seen,
            remedy="check that the address is that of an OCI registry, and look into its log",
        )

    def _url(self, path: str) -> str:
        return f"https://{self.address}{path}"


def _repeat(action: Callable[[], Result]) -> Result:
    pause = FIRST_PAUSE
    for _ in range(ATTEMPTS - 1):
        try:
            return action()
        except TransientError:
            time.sleep(pause)
            pause *= 2
    return action()


def _discard(response: Response) -> None:
    with response:
        response.read_all(MAX_ANSWER)


def _broken_off(url: str, seen: object) -> TransientError:
    return TransientError(
        "The transfer broke off",
        where=url,
        seen=str(seen) or type(seen).__name__,
        remedy="check the network and try again",
    )


def _error_text(body: bytes) -> str:
    """Return the first error of an OCI error body (distribution specification, "Error codes") as `` CODE message``."""
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        error = json.loads(body)["errors"][0]
        text = f" {error.get('code', '')} {error.get('message', '')}".rstrip()
        return re.sub(r"[^ -~]", "?", text)[:300]
    return ""


def _manifest_path(repository: str, reference: str) -> str:
    check_repository(repository, "the repository")
    if ":" in reference:
        check_digest(reference, f"a reference in {repository}")
    else:
        check_tag(reference, f"a reference in {repository}")
    return f"/v2/{repository}/manifests/{reference}"


def _blob_path(repository: str, digest: str) -> str:
    check_repository(repository, "the repository")
    return f"/v2/{repository}/blobs/{check_digest(digest, f'a blob of {repository}')}"


def _uploads_path(repository: str) -> str:
    check_repository(repository, "the repository")
    return f"/v2/{repository}/blobs/uploads/"
