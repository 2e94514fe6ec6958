# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 listeners: an ASGI application on uvicorn with httptools."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import uvicorn

from edgeml_runtime.config import Address, Config
from edgeml_runtime.errors import Failure
from edgeml_runtime.transports.credentials import TlsMaterial
from edgeml_runtime.transports.listener import Listener, bind, remove_unix_socket

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

STATUS = {
    Failure.INVALID: 400,
    Failure.UNAUTHENTICATED: 401,
    Failure.FORBIDDEN: 403,
    Failure.NOT_FOUND: 404,
    Failure.TOO_LARGE: 413,
    Failure.TOO_MANY: 429,
    Failure.UNAVAILABLE: 503,
    Failure.DEADLINE: 504,
    Failure.INTERNAL: 500,
}


async def listen(
    application: Application, address: Address, tls: TlsMaterial | None, config: Config, share_ports: bool
) -> Listener:
    """Open one listener; TLS applies to TCP only. ``share_ports``: see listener.bind. Raises StartError."""
    bound = bind(address, share_ports)
    context = tls.context if tls and not address.path else None
    settings = uvicorn.Config(
        application,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=int(config.limits.idle_seconds),
        timeout_graceful_shutdown=max(1, int(config.drain_seconds)),
        ssl_context_factory=(lambda _config, _default: context) if context else None,
    )
    # Server.serve would take the process's signals; there are several servers in this loop, so
    # its steps are called one by one.
    settings.load()
    server = uvicorn.Server(settings)
    server.lifespan = settings.lifespan_class(settings)
    await server.startup(sockets=[bound])
    running = asyncio.create_task(server.main_loop())
    return Listener(address.text, lambda: _stop(server, running, bound, address))


async def _stop(server: uvicorn.Server, running: asyncio.Task[None], bound: socket.socket, address: Address) -> None:
    server.should_exit = True
    await running
    await server.shutdown(sockets=[bound])
    remove_unix_socket(address)


async def respond(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a request header, by its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def certificate_name(scope: Scope) -> str | None:
    """The common name of the client's verified certificate, if it presented one."""
    name: str | None = scope.get("edgeml.certificate_name")
    return name
