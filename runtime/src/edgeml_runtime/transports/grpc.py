# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC listeners, and how they end without losing a request."""

import asyncio
import socket

from edgeml_runtime.config import Address, Config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access, TlsMaterial
from edgeml_runtime.transports.grpc_call import PREFIX_BYTES, Calls
from edgeml_runtime.transports.grpc_health import HEALTH_SERVICE, HealthService
from edgeml_runtime.transports.grpc_reflection import REFLECTION_SERVICES, ReflectionService
from edgeml_runtime.transports.grpc_service import SERVICE, InferenceService
from edgeml_runtime.transports.http2 import Connection, Shared
from edgeml_runtime.transports.listener import Listener, bind, remove_unix_socket

_BACKLOG = 2048
_LARGEST_WINDOW = 2**31 - 1
# For answers that are written when the time for a stop is over.
_FLUSH_SECONDS = 0.5


async def listen(
    engine: Engine,
    metrics: Metrics,
    address: Address,
    tls: TlsMaterial | None,
    access: Access | None,
    config: Config,
    share_ports: bool,
) -> Listener:
    """Open one listener; TLS applies to TCP only. ``share_ports``: see listener.bind. Raises StartError."""
    loop = asyncio.get_running_loop()
    calls = Calls(config.limits, loop.create_future())
    inference = InferenceService(engine, metrics, access, config)
    health = HealthService(engine, inference, calls.draining)
    reflection = ReflectionService(inference)
    calls.add(SERVICE, inference.answers(), inference.conversations())
    calls.add(HEALTH_SERVICE, health.answers(), health.conversations())
    for name in REFLECTION_SERVICES:
        calls.add(name, {}, reflection.conversations())
    # A whole message fits, so that only streams have to be told that there is room for more.
    shared = Shared(calls.open, min(config.limits.body_bytes + PREFIX_BYTES, _LARGEST_WINDOW), config.limits, loop)
    bound = bind(address, share_ports)
    context = tls.http2 if tls and not address.path else None
    server = await loop.create_server(
        lambda: Connection(shared),
        sock=bound,
        ssl=context,
        ssl_handshake_timeout=config.limits.receive_seconds if context else None,
        backlog=_BACKLOG,
    )
    return Listener(f"gRPC {address.text}", lambda: _stop(server, bound, shared, calls, address, config.drain_seconds))


async def _stop(
    server: asyncio.AbstractServer,
    bound: socket.socket,
    shared: Shared,
    calls: Calls,
    address: Address,
    drain_seconds: float,
) -> None:
    server.close()
    bound.close()
    shared.draining = True
    calls.draining.set_result(None)
    for connection in list(shared.connections):
        connection.drain()
    if not await _emptied(shared, drain_seconds):
        for connection in list(shared.connections):
            connection.give_up()
        if not await _emptied(shared, _FLUSH_SECONDS):
            for connection in list(shared.connections):
                connection.abort()
    remove_unix_socket(address)


async def _emptied(shared: Shared, seconds: float) -> bool:
    """Wait until there is no connection, at most so long."""
    try:
        await asyncio.wait_for(shared.empty.wait(), seconds)
    except TimeoutError:
        return False
    return True
