# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The way in for whoever asks a server: what a URL means, and a client for it."""

from urllib.parse import urlsplit

from edgeml_runtime.client.protocol import Access, Client, Target
from edgeml_runtime.errors import ConfigurationError

_ALLOWED = "http://HOST[:PORT], https://HOST[:PORT], grpc://HOST:PORT, grpcs://HOST:PORT, unix:/PATH, grpc+unix:/PATH"


def parse_target(url: str) -> Target:
    """What a URL means. Raises ConfigurationError."""
    scheme, _, rest = url.partition(":")
    if scheme in ("unix", "grpc+unix"):
        if not rest.startswith("/"):
            raise ConfigurationError("command line", "URL", repr(url), _ALLOWED, "give an absolute path")
        return Target(url, scheme != "unix", False, "localhost", 0, rest, "")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ConfigurationError("command line", "URL", repr(url), _ALLOWED, "correct the port") from None
    grpc = scheme in ("grpc", "grpcs")
    if not (grpc or scheme in ("http", "https")) or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError("command line", "URL", repr(url), _ALLOWED, "correct the URL")
    if grpc and (port is None or parts.path not in ("", "/")):
        raise ConfigurationError("command line", "URL", repr(url), "grpc://HOST:PORT", "give host and port alone")
    tls = scheme in ("https", "grpcs")
    return Target(url, grpc, tls, parts.hostname, port or (443 if tls else 80), "", parts.path.rstrip("/"))


def connect(target: Target, access: Access) -> Client:
    """A client for that server; it connects when it is first used. Raises ConfigurationError for unusable PEM files."""
    if target.grpc:
        from edgeml_runtime.client.grpc import GrpcClient  # its library is slow to import

        return GrpcClient(target, access)
    from edgeml_runtime.client.rest import RestClient

    return RestClient(target, access)
