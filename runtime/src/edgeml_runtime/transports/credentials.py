# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Who a client is and what it may do: TLS material, bearer tokens, names of client certificates."""

import hmac
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from edgeml_runtime.config import Grant, Tls
from edgeml_runtime.errors import Failure, RequestError, StartError

EVERYTHING = Grant(token=None, certificate_name=None, models=None, manage=True)


@dataclass(slots=True)
class TlsMaterial:
    """The same certificate for every TLS listener: as a context, and as PEM bytes for gRPC."""

    files: Tls
    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def refresh(self) -> None:
        """Take over what the files hold now, for new connections. Raises StartError, and nothing changes then."""
        fresh = load_tls(self.files)
        self.context.load_cert_chain(self.files.certificate, self.files.key)
        self.certificate, self.key, self.client_ca = fresh.certificate, fresh.key, fresh.client_ca


def load_tls(tls: Tls) -> TlsMaterial:
    """Read certificate, key and client CA. Raises StartError when they are no fitting PEM files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
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
    return TlsMaterial(
        files=tls,
        context=context,
        certificate=tls.certificate.read_bytes(),
        key=tls.key.read_bytes(),
        client_ca=tls.client_ca.read_bytes() if tls.client_ca else None,
    )


class Access:
    """The grants of the configuration; they can be replaced while listeners use them."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        self._grants = tuple(grants)

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
