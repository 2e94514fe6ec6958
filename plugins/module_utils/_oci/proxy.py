# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which HTTP proxy leads to a registry, and the tunnel through it (RFC 9110, section 9.3.6)."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import TransientError

MAX_HEAD = 16 << 10  # bytes of a proxy's answer
VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class ProxyError(TransientError):
    """The proxy does not lead to the registry."""


class Proxy:
    """An HTTP proxy. `shown` is its address without user name and password."""

    def __init__(self, url: str, variable: str = VARIABLES[0]) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            parts, host, port = urlsplit(""), "", 0
        if not host or parts.scheme != "http":
            raise FleetError(
                "The proxy cannot be used",
                where=f"the environment variable {variable}",
                seen=repr(re.sub(r"//[^/]*@", "//...@", url)),
                remedy="give http://HOST:PORT; a proxy that is itself reached over TLS or SOCKS is not supported",
            )
        self.host, self.port = host, port
        self.shown = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._login = ""
        if parts.username:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._login = base64.b64encode(login.encode()).decode()

    def connect(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """Return a connection to `host` through the proxy. Raise ProxyError if there is none."""
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            connected = socket.create_connection((self.host, self.port), timeout)
        except OSError as error:
            raise ProxyError(
                "The proxy cannot be reached",
                where=f"{self.shown}, on the way to {target}",
                seen=str(error) or type(error).__name__,
                remedy=f"correct https_proxy where this runs, or add {host} to no_proxy",
            ) from error
        try:
            login = f"Proxy-Authorization: Basic {self._login}\r\n" if self._login else ""
            connected.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
            status = _read_head(connected)
        except OSError as error:
            connected.close()
            raise self._refusal(target, host, str(error) or type(error).__name__) from error
        if not re.match(r"HTTP/1\.[01] 2\d\d", status):
            connected.close()
            raise self._refusal(target, host, status[:200])
        return connected

    def _refusal(self, target: str, host: str, seen: str) -> ProxyError:
        asks = " 407 " in f"{seen} "
        return ProxyError(
            "The proxy asks for a user name and password" if asks else "The proxy does not lead to the registry",
            where=f"{self.shown}, on the way to {target}",
            seen=seen,
            remedy="set https_proxy to http://USER:PASSWORD@HOST:PORT where this runs"
            if asks
            else f"have the proxy let {target} through, or add {host} to no_proxy",
        )


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that `environment` names for a host, None if it is reached directly.

    So are this host itself, by its addresses or as localhost, and what no_proxy excepts.
    """
    variable = next((name for name in VARIABLES if environment.get(name)), "")
    if not variable or is_local(host):
        return None
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(excepts(entry.strip(), host, str(port)) for entry in exceptions.split(",")):
        return None
    return Proxy(environment[variable], variable)


def excepts(entry: str, host: str, port: str) -> bool:
    """Return whether an entry of no_proxy is about a host: a name or its end, an address, a network, or ``*``."""
    name, _colon, only = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    if only not in ("", port):
        return False
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        host = host.lower()
        return name == "*" or (name != "" and (host == name.lstrip(".") or host.endswith("." + name.lstrip("*."))))


def is_local(host: str) -> bool:
    """Return whether `host` is this host: localhost, or an IP address of its own."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return address.is_loopback
    return True


def _read_head(connected: socket.socket) -> str:
    """Return the first line of an answer, of which nothing after the head is read."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connected.recv(1)
        if not byte or len(head) > MAX_HEAD:
            raise OSError("the proxy closed the connection" if not byte else "the proxy's answer is too long")
        head += byte
    return head.partition(b"\r\n")[0].decode("latin-1")
