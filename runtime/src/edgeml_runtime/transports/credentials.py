# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""TLS material and the bearer token."""

import hmac
import ssl
from dataclasses import dataclass

from edgeml_runtime.config import Tls
from edgeml_runtime.errors import StartError


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """The same certificate for every TLS listener: as a context, and as PEM bytes for gRPC."""

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    client_ca: bytes | None


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
        context=context,
        certificate=tls.certificate.read_bytes(),
        key=tls.key.read_bytes(),
        client_ca=tls.client_ca.read_bytes() if tls.client_ca else None,
    )


def is_authorised(token: str | None, authorization: bytes | None) -> bool:
    """Whether an Authorization header carries the token; true when none is configured. Constant-time."""
    if token is None:
        return True
    scheme, _, credentials = (authorization or b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(credentials.strip(), token.encode())
