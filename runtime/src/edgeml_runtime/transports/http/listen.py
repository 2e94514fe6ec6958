# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 listeners on uvloop and httptools, and how they end without losing a request."""

import asyncio
from collections.abc import Callable

from edgeml_runtime.config import Address, Config
from edgeml_runtime.transports.credentials import TlsMaterial
from edgeml_runtime.transports.http.connection import Connection
from edgeml_runtime.transports.http.messages import Application
from edgeml_runtime.transports.http.shared import Shared
from edgeml_runtime.transports.listener import Claim, Listener, accept, emptied, remove_unix_socket
from edgeml_runtime.transports.unsent import Unsent

# While draining: how long connections without a request stay open, so that a request that is on
# its way is answered, and the client learns to go elsewhere.
GRACE_SECONDS = 2.0
# For answers that are written when the time for a stop is over.
FLUSH_SECONDS = 0.5


async def listen(
    application: Application,
    address: Address,
    tls: TlsMaterial | None,
    config: Config,
    claim: Claim,
    unsent: Unsent | None = None,
) -> Listener:
    """Open one listener; TLS applies to TCP only. Raises StartError.

    ``unsent`` counts the answers of all listeners that wait for their clients.
    """
    shared = Shared(application, config.limits, asyncio.get_running_loop(), unsent)
    end = await accept(lambda: Connection(shared), address, tls.http1 if tls else None, config, claim)
    return Listener(f"{application.name} {address.text}", lambda: _stop(end, shared, address, config.drain_seconds))


async def _stop(end: Callable[[], None], shared: Shared, address: Address, drain_seconds: float) -> None:
    end()
    shared.draining = True
    for connection in list(shared.shed):
        connection.abort()
    grace = min(GRACE_SECONDS, drain_seconds)
    if not await emptied(shared.empty, grace):
        for connection in list(shared.connections):
            connection.close_if_idle()
        if not await emptied(shared.empty, drain_seconds - grace):
            for connection in list(shared.connections):
                connection.give_up()
            if not await emptied(shared.empty, FLUSH_SECONDS):
                for connection in list(shared.connections):
                    connection.abort()
    remove_unix_socket(address)
