# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What every listener has in common: an address, a way to stop, and unix socket files."""

import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from edgeml_runtime.config import Address
from edgeml_runtime.errors import StartError

# Owner and group of the server: on a unix socket the file's permissions are the access control.
SOCKET_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Listener:
    """An open listener. ``stop`` stops accepting at once and lets requests in flight finish, in bounded time."""

    address: Address
    stop: Callable[[], Awaitable[None]]


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


def bind(address: Address) -> socket.socket:
    """A bound socket, not yet listening. Raises StartError."""
    if address.path:
        clear_unix_socket(address)
        bound = socket.socket(socket.AF_UNIX)
        target: str | tuple[str, int] = address.path
    else:
        bound = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        target = (address.host, address.port)
    try:
        bound.bind(target)
        if address.path:
            Path(address.path).chmod(SOCKET_MODE)
    except OSError as error:
        bound.close()
        raise StartError(f"cannot listen on {address.text}: {_explained(error)}") from None
    return bound


def _explained(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop the other process or choose another port"
    return os.strerror(error.errno) if error.errno else str(error)
