# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC listeners, on grpcio's asyncio server. The only file that knows grpcio."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from edgeml_runtime.config import Address, Config, Limits
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, StartError, invalid
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access, Pem, TlsMaterial
from edgeml_runtime.transports.grpc_health import HEALTH_SERVICE, HealthService
from edgeml_runtime.transports.grpc_reflection import REFLECTION_SERVICES, ReflectionService
from edgeml_runtime.transports.grpc_service import CODES, SERVICE, Answer, Conversation, InferenceService
from edgeml_runtime.transports.listener import (
    SOCKET_MODE,
    Listener,
    clear_unix_socket,
    refuse_taken_port,
    remove_unix_socket,
)

_ALWAYS_ANSWERED = frozenset({"ServerLive", "ServerReady", "Check"})

# Clients with a retry policy wait that long before they try a server that has too much to do again (gRFC A6).
_RETRY_HINT = (("grpc-retry-pushback-ms", "1000"),)

_CANCELLATION_SECONDS = 0.1

logger = logging.getLogger(__name__)


class _Call:
    """See grpc_service.Call."""

    __slots__ = ("_context", "_draining", "_receive_seconds")

    def __init__(
        self, context: grpc.aio.ServicerContext, draining: "asyncio.Future[None]", receive_seconds: float
    ) -> None:
        self._context = context
        self._draining = draining
        self._receive_seconds = receive_seconds

    async def receive(self) -> bytes:
        try:
            async with asyncio.timeout(self._receive_seconds):
                message = await self._context.read()
        except TimeoutError:
            raise RequestError(
                Failure.DEADLINE, f"the request was not complete within {self._receive_seconds:g} s"
            ) from None
        if message is grpc.aio.EOF:
            # So it looks as well when the call has failed; then this task is about to be cancelled.
            await asyncio.sleep(_CANCELLATION_SECONDS)
            raise invalid("the call brought no request")
        return bytes(message)

    async def read(self) -> bytes | None:
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait((reading, self._draining), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise RequestError(Failure.UNAVAILABLE, "the server is stopping")
        finally:
            reading.cancel()
        message = reading.result()
        return None if message is grpc.aio.EOF else bytes(message)

    async def write(self, message: bytes) -> None:
        await self._context.write(message)

    def authorization(self) -> bytes | None:
        for key, value in self._context.invocation_metadata() or ():
            if key == "authorization":
                return bytes(value.encode())
        return None

    def certificate_name(self) -> str | None:
        names = (self._context.auth_context() or {}).get("x509_common_name", ())
        return str(names[0], "utf-8", "replace") if names else None

    def seconds_left(self) -> float | None:
        left: float | None = self._context.time_remaining()
        return left

    def client(self) -> str:
        kind, _, address = self._context.peer().partition(":")
        return "unix" if kind == "unix" else str(address)


class _Handlers:
    """grpcio's handlers for the methods of the services of one listener."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._under_way = 0
        #: Done when the listener stops: streams then end.
        self.draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def of(self, service: InferenceService | HealthService | ReflectionService) -> dict[str, grpc.RpcMethodHandler]:
        """Handlers of all methods of a service, by name."""
        table = {name: self._answer(name, method) for name, method in service.answers().items()}
        return table | {name: self._conversation(name, method) for name, method in service.conversations().items()}

    def _answer(self, name: str, method: Answer) -> grpc.RpcMethodHandler:
        """Of a method with one request. As a stream of one it begins before the request has been received."""

        async def handler(_requests: object, context: grpc.aio.ServicerContext) -> bytes:
            return await self._guarded(name, method, context) or b""

        return grpc.stream_unary_rpc_method_handler(handler)

    def _conversation(self, name: str, method: Conversation) -> grpc.RpcMethodHandler:
        """Of a method with a stream of answers."""

        async def handler(_requests: object, context: grpc.aio.ServicerContext) -> None:
            await self._guarded(name, method, context)

        return grpc.stream_stream_rpc_method_handler(handler)

    async def _guarded(
        self, name: str, method: Callable[[_Call], Awaitable[Any]], context: grpc.aio.ServicerContext
    ) -> Any:
        self._under_way += 1
        try:
            if self._under_way > self._limits.connections and name not in _ALWAYS_ANSWERED:
                raise RequestError(Failure.TOO_MANY, f"{self._limits.connections} calls are under way; try again later")
            return await method(_Call(context, self.draining, self._limits.receive_seconds))
        except RequestError as error:
            context.set_code(grpc.StatusCode[CODES[error.failure]])
            context.set_details(str(error))
            if error.failure is Failure.TOO_MANY:
                context.set_trailing_metadata(_RETRY_HINT)
        except Exception:
            logger.exception("%s failed", name)
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("the server failed; its log says why")
        finally:
            self._under_way -= 1
        return None


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
    server = grpc.aio.server(options=_options(config.limits))
    handlers = _Handlers(config.limits)
    inference = InferenceService(engine, metrics, access, config)
    health = HealthService(engine, inference, handlers.draining)
    reflection = ReflectionService(inference)
    services: list[tuple[str, InferenceService | HealthService | ReflectionService]]
    services = [(SERVICE, inference), (HEALTH_SERVICE, health), *((name, reflection) for name in REFLECTION_SERVICES)]
    for name, service in services:
        table = handlers.of(service)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, table),))
    if address.path:
        clear_unix_socket(address)
    elif not share_ports:
        # gRPC itself would take a share of the connections of a port that is taken.
        refuse_taken_port(address)
    target = f"unix:{address.path}" if address.path else _target(address)
    try:
        if tls and not address.path:
            server.add_secure_port(target, _credentials(tls))
        else:
            server.add_insecure_port(target)
        if address.path:
            Path(address.path).chmod(SOCKET_MODE)
    except (RuntimeError, OSError):
        reason = "is the address in use, or of no interface of this host?"
        raise StartError(f"cannot listen on {address.text}: gRPC could not bind it; {reason}") from None
    await server.start()

    async def stop() -> None:
        handlers.draining.set_result(None)
        await server.stop(config.drain_seconds)
        remove_unix_socket(address)

    return Listener(f"gRPC {address.text}", stop)


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    idle = int(limits.idle_seconds * 1000)
    return (
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        # Beyond the first the server may refuse, beyond the second it does.
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.receive_seconds * 1000)),
        ("grpc.max_connection_idle_ms", idle),
        # Find out that a client is gone though its connection was never closed.
        ("grpc.keepalive_time_ms", idle),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping every ten seconds, also between calls; who does it more often is sent away.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
    )


def _credentials(tls: TlsMaterial) -> grpc.ServerCredentials:
    """Credentials that follow ``tls``: gRPC asks for them at each new connection, from a thread of its own."""
    given = tls.pem

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if tls.pem is given:
            return None
        given = tls.pem
        return _certificates(given)

    return grpc.dynamic_ssl_server_credentials(_certificates(given), fetch, given.client_ca is not None)


def _certificates(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], root_certificates=pem.client_ca)


def _target(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
