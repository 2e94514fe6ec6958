# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What every listener has in common: an address, a way to stop, and unix socket files."""

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edgeml_runtime.config import Address, Config
from edgeml_runtime.errors import StartError

_BACKLOG = 2048
# Linux takes an address that no interface has yet (ip(7), ipv6(7)); the module socket does not name the options.
_IP_FREEBIND = (socket.IPPROTO_IP, 15)
_IPV6_FREEBIND = (socket.IPPROTO_IPV6, 78)

# Owner and group of the server: on a unix socket the file's permissions are the access control.
SOCKET_MODE = 0o660


class Claim(Enum):
    """How a process comes to a TCP port."""

    NEW = "nobody holds it"
    OVER = "another process holds it, and gives it up"
    AGAIN = "this was served before; the address may come later than the process, as at the start of a machine"


@dataclass(frozen=True, slots=True)
class Listener:
    """An open listener; ``name`` is for people.

    ``stop`` stops accepting at once, asks clients to leave and lets requests in flight finish, in bounded time.
    """

    name: str
    stop: Callable[[], Awaitable[None]]


async def accept(
    make: Callable[[], asyncio.Protocol],
    address: Address,
    context: ssl.SSLContext | None,
    config: Config,
    claim: Claim,
) -> Callable[[], None]:
    """Accept connections, which ``make`` makes; what is given back ends that. TLS applies to TCP only.

    Raises StartError.
    """
    bound = bind(address, claim)
    if address.path:
        context = None
    server = await asyncio.get_running_loop().create_server(
        make,
        sock=bound,
        ssl=context,
        ssl_handshake_timeout=config.limits.receive_seconds if context else None,
        backlog=_BACKLOG,
    )

    def end() -> None:
        server.close()
        bound.close()

    return end


async def emptied(empty: asyncio.Event, seconds: float) -> bool:
    """Wait until ``empty`` says that there is no connection, at most so long; whether it did."""
    if empty.is_set():
        return True
    try:
        await asyncio.wait_for(empty.wait(), seconds)
    except TimeoutError:
        return False
    return True


def clear_unix_socket(address: Address) -> None:
    """Remove the socket file that a server left behind. Raises StartError when it is in use or no socket."""
    path = Path(address.path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on {address.text}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on {address.text}: the file exists and is no socket; remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(address.path) == 0:
            raise StartError(f"cannot listen on {address.text}: another process listens there")
    path.unlink(missing_ok=True)


def remove_unix_socket(address: Address) -> None:
    """Remove the socket file of a stopped listener."""
    if address.path:
        Path(address.path).unlink(missing_ok=True)


def bind(address: Address, claim: Claim) -> socket.socket:
    """A bound socket, not yet listening. Raises StartError.

    Another process can share the port later (SO_REUSEPORT); one that holds it already is an error,
    unless this process takes over from it.
    """
    if address.path:
        clear_unix_socket(address)
        bound = socket.socket(socket.AF_UNIX)
        target: str | tuple[str, int] = address.path
    else:
        if claim is not Claim.OVER:
            refuse_taken_port(address, claim)
        bound = _tcp_socket(address, claim)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        target = (address.host, address.port)
    try:
        bound.bind(target)
        if address.path:
            Path(address.path).chmod(SOCKET_MODE)
    except OSError as error:
        bound.close()
        raise StartError(f"cannot listen on {address.text}: {_explained(error)}") from None
    return bound


def refuse_taken_port(address: Address, claim: Claim) -> None:
    """Raises StartError when another process listens there, even one that would share the port."""
    with _tcp_socket(address, claim) as probe:
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise StartError(f"cannot listen on {address.text}: {_explained(error)}") from None


def _tcp_socket(address: Address, claim: Claim) -> socket.socket:
    is_ipv6 = ":" in address.host
    opened = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if claim is Claim.AGAIN:
        opened.setsockopt(*(_IPV6_FREEBIND if is_ipv6 else _IP_FREEBIND), 1)
    return opened


def _explained(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop the other process or choose another port"
    return os.strerror(error.errno) if error.errno else str(error)
