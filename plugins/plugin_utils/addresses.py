# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and addresses of hosts as people write them: with or without a port, IPv6 in brackets or not."""

from __future__ import annotations

import re
from ipaddress import ip_address

#: Where a server that listens on every address of this host is asked by the host itself.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def address_host(address: str) -> str:
    """Return the host of ``host``, ``host:port``, ``[IPv6]:port`` or of an IPv6 address, without brackets."""
    bracketed = re.match(r"\[([^\]]*)\]", address)
    if bracketed:
        return bracketed[1]
    return address.partition(":")[0] if address.count(":") == 1 else address


def address_port(address: str, default: int | None = None) -> int | None:
    """Return the port of an address, `default` if it has none."""
    found = re.search(r"^[^:\[\]]*:([0-9]+)$|\]:([0-9]+)$", address)
    return int(found[1] or found[2]) if found else default


def address(host: str, port: int | str) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    host = address_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_address(host: str) -> str:
    """Return where this host itself asks a server that listens at `host`: loopback if it listens everywhere."""
    host = address_host(host)
    return _EVERYWHERE.get(host, host)


def server_name(name: str) -> str:
    """Return what an inventory's name of a host is in certificates: an IP address, or a name that clients accept."""
    if is_ip_address(name):
        return name
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "host"


def alternative_name(name: str) -> str:
    """Return ``IP:`` or ``DNS:`` and the name, as certificates carry it."""
    host = address_host(name).partition("%")[0]  # a zone is known to one host alone
    if is_ip_address(host):
        return f"IP:{ip_address(host)}"
    return "DNS:" + re.sub(r"[^A-Za-z0-9._*-]+", "-", host)


def is_ip_address(text: str) -> bool:
    """Return whether `text` is an IP address, without brackets and port."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
