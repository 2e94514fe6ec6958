# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connected sockets to inference servers: TCP in clear, TCP with TLS, and unix sockets."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import Access, unreadable


def tls_context(access: Access) -> ssl.SSLContext:
    """Return what a server's certificate is checked by.

    Raises
    ------
    FleetError
        A PEM file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except OSError as error:
        raise unreadable("ca_file", access.ca_file, error) from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 refuses private authorities that older ones take
    if access.client_certificate:
        try:
            # An empty password: an encrypted key must fail, not ask a terminal.
            context.load_cert_chain(access.client_certificate, access.client_key, password="")
        except OSError as error:
            raise unreadable("client_certificate or client_key", access.client_certificate, error) from error
    return context


def open_socket(access: Access, context: ssl.SSLContext | None) -> socket.socket:
    """Return a socket that is connected, with TLS where there is a context; raise OSError."""
    if access.unix:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(access.timeout)
        try:
            sock.connect(access.address)
        except OSError:
            sock.close()
            raise
        return sock
    parts = urlsplit(f"//{access.address}")
    sock = socket.create_connection((parts.hostname or "", parts.port or 0), access.timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return sock
    try:
        return context.wrap_socket(sock, server_hostname=access.server_name or parts.hostname)
    except OSError:
        sock.close()
        raise
