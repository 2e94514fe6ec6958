# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of an OCI registry (distribution specification 1.1) over TLS, with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import re
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.connection import Connections, Response, led_to
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import answer_failure, repeat
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_INDEX,
    MANIFEST_TYPES,
    check_digest,
    check_repository,
    check_tag,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.tls import client_context, present

MAX_REDIRECTS = 5
MAX_MANIFEST = 4 << 20  # bytes; what the specification asks registries to accept
MAX_ANSWER = 64 << 10  # bytes of any other answer that is not a blob
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
        "client_certificate": {"type": "str"},
        "client_key": {"type": "str", "no_log": True},
    },
    "required_together": [("username", "password"), ("client_certificate", "client_key")],
    "mutually_exclusive": [("ca_file", "ca_certificate")],
}


class Registry:
    """One registry at `address`, always over TLS.

    Parameters
    ----------
    address : str
        ``host`` or ``host:port``, without scheme and path; an IPv6 address in brackets.
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
    client_certificate, client_key : str
        PEM text of what to present to a registry that asks for a certificate. Empty: nothing.

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
        client_certificate: str = "",
        client_key: str = "",
    ) -> None:
        found = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", address)
        if found is None or int(found[1] or 443) > 65535:
            raise FleetError(
                "Not a registry address",
                where=repr(address),
                remedy="give host or host:port without https:// and path, an IPv6 address in brackets: [::1]:5000",
            )
        self.address = address
        self._username = username
        self._password = password
        self._patient = patient
        self._basic = ""
        self._tokens: dict[tuple[str, bool], str] = {}  # by repository and whether it may write
        tls = client_context(ca_file, ca_certificate)
        if client_certificate:
            present(tls, client_certificate, client_key)
        self._connections = Connections(address, ip_address, tls, timeout)

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
            client_certificate=options.get("client_certificate") or "",
            client_key=options.get("client_key") or "",
        )

    def another(self, ahead: int = 0) -> Registry:
        """Return a client of the same registry for another thread, as Source.another says."""
        other = copy.copy(self)
        other._tokens = dict(self._tokens)
        other._connections = self._connections.another(ahead)
        return other

    def close(self) -> None:
        """Close the connections that are kept between calls."""
        self._connections.close()

    def ping(self) -> None:
        """Check that the registry answers and accepts the user name and password (end-1)."""
        self._call("GET", "/v2/", expect={200})

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type (end-3).

        `reference` is a tag or a digest; bytes that do not have that digest raise FleetError.
        """
        return self._read_manifest(_manifest_path(repository, reference), repository, reference, {200})[1:]

    def find_manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """Return what `get_manifest` returns, None if the repository does not hold it."""
        path = _manifest_path(repository, reference)
        status, data, media_type = self._read_manifest(path, repository, reference, {200, 404})
        return (data, media_type) if status == 200 else None

    def find_referrers(self, repository: str, digest: str) -> bytes | None:
        """Return the index of what refers to a manifest (end-12a), None if the registry does not know such a call."""
        check_repository(repository, "the repository")
        path = f"/v2/{repository}/referrers/{check_digest(digest, f'a manifest of {repository}')}"
        status, data, media_type = self._read_manifest(path, repository, "", {200, 400, 404, 405})
        return data if status == 200 and media_type == IMAGE_INDEX else None

    def _read_manifest(self, path: str, repository: str, reference: str, expect: set[int]) -> tuple[int, bytes, str]:
        status, headers, data = self._call(
            "GET",
            path,
            repository,
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
            expect=expect,
            limit=MAX_MANIFEST + 1,
        )
        if len(data) > MAX_MANIFEST:
            raise FleetError(
                "The manifest is too large",
                where=self._url(path),
                seen=f"more than {MAX_MANIFEST} bytes",
                remedy="check that the reference names a manifest",
            )
        if status == 200 and ":" in reference and sha256_digest(data) != reference:
            raise FleetError(
                "The registry delivered a manifest that has another digest than the one asked for",
                where=self._url(path),
                seen=sha256_digest(data),
                remedy="its storage is damaged or something changes its answers: remove and publish the content again",
            )
        return status, data, (headers.get("Content-Type") or "").partition(";")[0].strip()

    def has_manifest(self, repository: str, reference: str) -> bool:
        """Return whether the repository holds this tag or digest (end-3, HEAD)."""
        return self._head_manifest(repository, reference)[0] == 200

    def manifest_digest(self, repository: str, reference: str) -> str | None:
        """Return the digest of the manifest under a tag or digest, None if the repository does not hold it."""
        status, headers = self._head_manifest(repository, reference)
        if status == 404:
            return None
        # Stating the digest is optional for a registry.
        stated = headers.get("Docker-Content-Digest")
        return stated or sha256_digest(self.get_manifest(repository, reference)[0])

    def _head_manifest(self, repository: str, reference: str) -> tuple[int, Message]:
        path = _manifest_path(repository, reference)
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        status, headers, _data = self._call("HEAD", path, repository, headers=accept, expect={200, 404})
        return status, headers

    def has_blob(self, repository: str, digest: str) -> bool:
        """Return whether the repository holds this blob (end-2, HEAD)."""
        status, _headers, _data = self._call("HEAD", _blob_path(repository, digest), repository, expect={200, 404})
        return status == 200

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> Response:
        """Start to read a blob (end-2), from byte `offset` if the registry can (RFC 9110 section 14).

        The caller looks at the answer's `offset` and verifies the digest.
        """
        path = _blob_path(repository, digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = repeat(lambda: self._exchange("GET", path, repository, headers=headers))
        if response.status in (200, 206) and response.offset in (0, offset):
            return response
        try:
            raise self._failure(response.status, response.read_all(MAX_ANSWER), response.url)
        finally:
            response.close()

    def push_blob(self, repository: str, source: Path | bytes, digest: str) -> bool:
        """Send a file or bytes as a blob (end-4a, end-6); return False, nothing sent, if the repository has it."""
        if self.has_blob(repository, digest):
            return False
        repeat(lambda: self._upload(repository, source, digest))
        return True

    def mount_blob(self, repository: str, digest: str, from_repository: str) -> bool:
        """Let `repository` hold a blob of `from_repository` too (end-11); return False if the registry did not."""
        check_digest(digest, f"registry {self.address}")
        check_repository(from_repository, f"registry {self.address}")
        path = _uploads_path(repository)
        query = urlencode({"mount": digest, "from": from_repository})
        status, headers, _data = self._call("POST", f"{path}?{query}", repository, write=True, expect={201, 202})
        if status == 202:  # an upload was opened instead
            upload = led_to(self._url(path), headers.get("Location") or "", "Location")
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
                raise self._failure(response.status, answer, response.url)
        location = led_to(self._url(path), response.headers.get("Location") or "", "Location")
        location += ("&" if urlsplit(location).query else "?") + urlencode({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        with self._exchange("PUT", location, repository, write=True, headers=headers, body=source) as response:
            answer = response.read_all(MAX_ANSWER)
            if response.status != 201:
                raise self._failure(response.status, answer, response.url)

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
                    raise self._failure(response.status, data, response.url)
                return response.status, response.headers, data

        return repeat(attempt) if self._patient else attempt()

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
            sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
            response = self._connections.send(method, parts, sent, body)
            if response.status == 401 and trusted and not challenged:
                challenged = True
                _discard(response)
                if self._authenticate(response.headers, repository, write):
                    continue
                raise self._failure(401, b"", response.url)
            if response.status in REDIRECT_STATUS and method in ("GET", "HEAD") and redirects < MAX_REDIRECTS:
                redirects += 1
                _discard(response)
                url = led_to(url, response.headers.get("Location") or "", "Location")
                continue
            return response

    def _authenticate(self, headers: Message, repository: str, write: bool) -> bool:
        """Prepare what the registry asks for in WWW-Authenticate (RFC 9110 section 11); return False if it cannot."""
        for challenge in headers.get_all("WWW-Authenticate") or []:
            scheme, _separator, rest = str(challenge).partition(" ")
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
        realm = urlsplit(led_to(self._url("/"), challenge.get("realm", ""), "WWW-Authenticate", absolute=True))
        realm = realm._replace(query="&".join(filter(None, (realm.query, urlencode(query)))))
        headers = {}
        if self._username:
            pair = f"{self._username}:{self._password}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        with self._connections.send("GET", realm, headers, b"") as response:
            answer = response.read_all(MAX_ANSWER)
            if response.status != 200:
                raise self._failure(response.status, answer, response.url)
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

    def _failure(self, status: int, body: bytes, where: str) -> FleetError:
        return answer_failure(status, body, where, self._username)

    def _url(self, path: str) -> str:
        return f"https://{self.address}{path}"


def _discard(response: Response) -> None:
    with response:
        response.read_all(MAX_ANSWER)


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
