# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Who a client is and what it may do: TLS material, bearer tokens, names of client certificates."""

import hmac
import ssl
from collections.abc import Sequence
from typing import Any

from edgeml_runtime.config import Grant, Tls
from edgeml_runtime.errors import Failure, RequestError, StartError

_HTTP1, _HTTP2 = "http/1.1", "h2"  # as ALPN names them

EVERYTHING = Grant(token=None, certificate_name=None, models=None, manage=True)


class TlsMaterial:
    """Certificate, key and client CA of all TLS listeners, which can be replaced while they listen.

    ``http1`` and ``http2`` are the contexts for listeners of these protocols: each handshake moves
    on to what was read last.
    """

    def __init__(self, files: Tls) -> None:
        """Read the files. Raises StartError when they are no fitting PEM files."""
        self._files = files
        self._seen: tuple[object, ...] = ()
        self._current: dict[str, ssl.SSLContext] = {}
        self.refresh()
        self.http1, self.http2 = self._following(_HTTP1), self._following(_HTTP2)

    def refresh(self) -> bool:
        """Take over what the files hold now, for new connections; whether it was anything new.

        Raises StartError, and what was read before goes on then.
        """
        files = [file for file in (self._files.certificate, self._files.key, self._files.client_ca) if file]
        try:
            contents = tuple(file.read_bytes() for file in files)
        except OSError as error:
            raise StartError(f"tls: {error.filename}: {error.strerror}") from None
        if contents == self._seen:
            return False
        self._current = {protocol: _context(self._files, protocol) for protocol in (_HTTP1, _HTTP2)}
        self._seen = contents
        return True

    def _following(self, protocol: str) -> ssl.SSLContext:
        def use_current(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: object) -> None:
            connection.context = self._current[protocol]

        context = _context(self._files, protocol)
        # Called for every handshake, with or without a server name.
        context.sni_callback = use_current
        return context


def _context(tls: Tls, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"tls.certificate {tls.certificate} with tls.key {tls.key}: {error}") from None
    if tls.client_ca:
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"tls.client_ca {tls.client_ca}: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Access:
    """The grants of the configuration; they can be replaced while listeners use them."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        self._grants = tuple(grants)

    @property
    def is_open(self) -> bool:
        """Nothing is configured: everybody may do everything."""
        return not self._grants

    def replace(self, grants: Sequence[Grant]) -> None:
        """From now on these."""
        self._grants = tuple(grants)

    def grant(self, authorization: bytes | None, certificate_name: str | None) -> Grant:
        """What the client may do: everything when nothing is configured.

        ``authorization``: the value of the Authorization header. ``certificate_name``: the common
        name of the client's verified certificate. Raises RequestError (unauthenticated). Compares
        tokens in constant time.
        """
        if not self._grants:
            return EVERYTHING
        scheme, _, credentials = (authorization or b"").partition(b" ")
        token = credentials.strip() if scheme.lower() == b"bearer" else b""
        found = None
        for grant in self._grants:
            if grant.token is not None:
                if hmac.compare_digest(token, grant.token.encode()):
                    found = grant
            elif certificate_name is not None and grant.certificate_name == certificate_name:
                found = grant
        if found is None:
            wanted = "a valid bearer token" if any(grant.token for grant in self._grants) else "a known certificate"
            raise RequestError(Failure.UNAUTHENTICATED, f"{wanted} is required")
        return found


def check_model(grant: Grant, name: str) -> None:
    """Raises RequestError (forbidden) when the client may not use that model."""
    if grant.models is not None and name not in grant.models:
        raise RequestError(Failure.FORBIDDEN, f"this client may not use model '{name[:100]}'")


def check_manage(grant: Grant) -> None:
    """Raises RequestError (forbidden) when the client may not load and unload models."""
    if not grant.manage:
        raise RequestError(Failure.FORBIDDEN, "this client may not load or unload models")


def common_name(certificate: dict[str, Any] | None) -> str | None:
    """The common name of a client's certificate, as the ssl module gives it."""
    for names in (certificate or {}).get("subject", ()):
        for key, value in names:
            if key == "commonName":
                return str(value)
    return None
