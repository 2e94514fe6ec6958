# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to servers of the Open Inference Protocol v2: `connect` is the way in, for modules and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Access, Client
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.grpc import GrpcClient
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.rest import RestClient

SCHEMES = ("http", "https", "http+unix", "grpc", "grpcs", "grpc+unix")

# Described for users in doc_fragments/inference_endpoint.py.
ENDPOINT_ARGUMENTS: Mapping[str, Any] = {
    "endpoint": {"type": "str", "required": True},
    "ca_file": {"type": "path"},
    "client_certificate": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "server_name": {"type": "str"},
    "bearer_token": {"type": "str", "no_log": True},
    "timeout": {"type": "float", "default": 10.0},
}


def connect(
    endpoint: str,
    *,
    ca_file: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    server_name: str | None = None,
    bearer_token: str | None = None,
    timeout: float = 10.0,
) -> Client:
    """Return a client for an inference server; a context manager, which opens its connection with the first request.

    Parameters
    ----------
    endpoint : str
        `http://host:port`, `https://host:port`, `http+unix:///path`, `grpc://host:port` (in clear), `grpcs://host:port`
        or `grpc+unix:///path`.
    ca_file : str, optional
        PEM file with the authorities to trust. Without it those of the system.
    client_certificate, client_key : str, optional
        PEM files to identify this client with.
    server_name : str, optional
        Name that the server's certificate must carry, where it is not the host of the endpoint.
    bearer_token : str, optional
        Secret sent with each request.
    timeout : float
        Seconds for one request and its answer.

    Raises
    ------
    FleetError
        The endpoint is not one of the above, the token would cross a network in clear text, or a PEM file cannot be
        read.
    """
    parts = _split(endpoint)
    unix, tls = parts.scheme.endswith("+unix"), parts.scheme in ("https", "grpcs")
    if bearer_token and not unix and not tls and not _is_loopback(parts.hostname or ""):
        raise FleetError(
            "The bearer token would cross the network in clear text",
            where=endpoint,
            remedy="use https or grpcs, or leave bearer_token out",
        )
    access = Access(
        endpoint=endpoint,
        address=parts.path if unix else parts.netloc,
        unix=unix,
        tls=tls,
        ca_file=ca_file,
        client_certificate=client_certificate,
        client_key=client_key,
        server_name=server_name,
        bearer_token=bearer_token,
        timeout=timeout,
    )
    return (GrpcClient if parts.scheme.startswith("grpc") else RestClient)(access)


def _split(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme.endswith("+unix"):
        valid = not parts.netloc and parts.path.startswith("/")
    else:
        valid = bool(host and port) and parts.path in ("", "/") and parts.username is None
    if parts.scheme not in SCHEMES or not valid or parts.query or parts.fragment:
        raise FleetError(
            "The endpoint is not an address of an inference server",
            # What is before an @ may be a password.
            seen=repr(endpoint if "@" not in endpoint else "…@" + endpoint.rpartition("@")[2]),
            remedy="give SCHEME://HOST:PORT with the scheme http, https, grpc or grpcs, "
            "or http+unix:///PATH or grpc+unix:///PATH",
        )
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
