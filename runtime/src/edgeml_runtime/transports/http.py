# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 listeners on uvloop and httptools, and how they end without losing a request."""

import asyncio
import socket

from edgeml_runtime.config import Address, Config
from edgeml_runtime.transports.credentials import TlsMaterial
from edgeml_runtime.transports.http_connection import Connection, Shared
from edgeml_runtime.transports.http_messages import Application
from edgeml_runtime.transports.listener import Listener, bind, remove_unix_socket

BACKLOG = 2048
# While draining: how long connections without a request stay open, so that a request that is on
# its way is answered, and the client learns to go elsewhere.
GRACE_SECONDS = 2.0
# For answers that are written when the time for a stop is over.
FLUSH_SECONDS = 0.5


async def listen(
    application: Application, address: Address, tls: TlsMaterial | None, config: Config, share_ports: bool
) -> Listener:
    """Open one listener; TLS applies to TCP only. ``share_ports``: see listener.bind. Raises StartError."""
    bound = bind(address, share_ports)
    context = tls.http1 if tls and not address.path else None
    loop = asyncio.get_running_loop()
    shared = Shared(application, config.limits, loop)
    server = await loop.create_server(
        lambda: Connection(shared),
        sock=bound,
        ssl=context,
        ssl_handshake_timeout=config.limits.receive_seconds if context else None,
        backlog=BACKLOG,
    )
    return Listener(
        f"{application.name} {address.text}", lambda: _stop(server, bound, shared, address, config.drain_seconds)
    )


async def _stop(
    server: asyncio.AbstractServer, bound: socket.socket, shared: Shared, address: Address, drain_seconds: float
) -> None:
    server.close()
    bound.close()
    shared.draining = True
    for connection in list(shared.shed):
        connection.abort()
    grace = min(GRACE_SECONDS, drain_seconds)
    if not await _emptied(shared, grace):
        for connection in list(shared.connections):
            connection.close_if_idle()
        if not await _emptied(shared, drain_seconds - grace):
            for connection in list(shared.connections):
                connection.give_up()
            if not await _emptied(shared, FLUSH_SECONDS):
                for connection in list(shared.connections):
                    connection.abort()
    remove_unix_socket(address)


async def _emptied(shared: Shared, seconds: float) -> bool:
    """Wait until there is no connection, at most so long."""
    if shared.empty.is_set():
        return True
    try:
        await asyncio.wait_for(shared.empty.wait(), seconds)
    except TimeoutError:
        return False
    return True
