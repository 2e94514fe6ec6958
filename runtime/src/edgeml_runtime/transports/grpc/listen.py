# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC listeners, and how they end without losing a request."""

import asyncio
from collections.abc import Callable
from functools import partial

from edgeml_runtime.config import Address, Config
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access, TlsMaterial
from edgeml_runtime.transports.grpc.call import Call
from edgeml_runtime.transports.grpc.calls import Calls
from edgeml_runtime.transports.grpc.health import HEALTH_SERVICE, HealthService
from edgeml_runtime.transports.grpc.http2 import Connection
from edgeml_runtime.transports.grpc.incoming import PREFIX_BYTES
from edgeml_runtime.transports.grpc.reflection import REFLECTION_SERVICES, ReflectionService
from edgeml_runtime.transports.grpc.service import SERVICE, InferenceService
from edgeml_runtime.transports.grpc.windows import Shared
from edgeml_runtime.transports.listener import Claim, Listener, accept, emptied, remove_unix_socket
from edgeml_runtime.transports.unsent import Unsent

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
    claim: Claim,
    unsent: Unsent | None = None,
) -> Listener:
    """Open one listener; TLS applies to TCP only. Raises StartError.

    ``unsent`` counts the answers of all listeners that wait for their clients.
    """
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
    shared = Shared(
        partial(Call, calls), min(config.limits.body_bytes + PREFIX_BYTES, _LARGEST_WINDOW), config.limits, loop, unsent
    )
    end = await accept(lambda: Connection(shared), address, tls.http2 if tls else None, config, claim)
    return Listener(f"gRPC {address.text}", lambda: _stop(end, shared, calls, address, config.drain_seconds))


async def _stop(end: Callable[[], None], shared: Shared, calls: Calls, address: Address, drain_seconds: float) -> None:
    end()
    shared.draining = True
    calls.draining.set_result(None)
    for connection in list(shared.connections):
        connection.drain()
    if not await emptied(shared.empty, drain_seconds):
        for connection in list(shared.connections):
            connection.give_up()
        if not await emptied(shared.empty, _FLUSH_SECONDS):
            for connection in list(shared.connections):
                connection.abort()
    remove_unix_socket(address)
