# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over gRPC, on grpcio's asyncio server: methods, status codes and listeners.

Messages pass as bytes; the codec parses them. Specification: section "GRPC".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

import grpc  # type: ignore[import-untyped]

from edgeml_runtime import SERVER_NAME, __version__
from edgeml_runtime.codecs import protobuf
from edgeml_runtime.config import Address, Config, Grant
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import EVERYTHING, Access, TlsMaterial, check_model
from edgeml_runtime.transports.listener import (
    SOCKET_MODE,
    Listener,
    clear_unix_socket,
    refuse_taken_port,
    remove_unix_socket,
)

SERVICE = "inference.GRPCInferenceService"

_CODES = {
    Failure.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Failure.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Failure.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Failure.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Failure.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Failure.TOO_MANY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Failure.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Failure.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Failure.INTERNAL: grpc.StatusCode.INTERNAL,
}

_Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]

logger = logging.getLogger(__name__)


class _Service:
    def __init__(self, engine: Engine, metrics: Metrics, access: Access | None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._access = access

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, _Handler] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_unary_rpc_method_handler(_guarded(method)) for name, method in methods.items()}
        )

    async def _server_live(self, _body: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return protobuf.server_live()

    async def _server_ready(self, _body: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return protobuf.server_ready(self._engine.ready)

    async def _server_metadata(self, _body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._authorise(context)
        return protobuf.server_metadata(SERVER_NAME, __version__)

    async def _model_ready(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        name, version = protobuf.parse_model(body)
        check_model(self._authorise(context), name)
        return protobuf.model_ready(self._engine.is_loaded(name, version))

    async def _model_metadata(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        name, version = protobuf.parse_model(body)
        check_model(self._authorise(context), name)
        return protobuf.model_metadata(self._engine.model(name, version))

    async def _model_infer(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started = perf_counter()
        known = ""
        code = grpc.StatusCode.INTERNAL
        try:
            grant = self._authorise(context)
            message = protobuf.parse_inference(body)
            check_model(grant, message.model_name)
            model = self._engine.model(message.model_name, message.model_version)
            known = model.name
            request = protobuf.decode(model, message)
            results = await model.infer(request)
            answer = protobuf.encode(model, request, results)
            code = grpc.StatusCode.OK
            model.metrics.total(perf_counter() - started)
            return answer
        except RequestError as error:
            code = _CODES[error.failure]
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._metrics.count_request(known, "grpc", code.name)

    def _authorise(self, context: grpc.aio.ServicerContext) -> Grant:
        if self._access is None:
            return EVERYTHING
        authorization = dict(context.invocation_metadata() or ()).get("authorization")
        names = (context.auth_context() or {}).get("x509_common_name", ())
        return self._access.grant(
            authorization.encode() if authorization else None, names[0].decode() if names else None
        )


def _guarded(method: _Handler) -> _Handler:
    async def handler(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return await method(body, context)
        except RequestError as error:
            context.set_code(_CODES[error.failure])
            context.set_details(str(error))
        except Exception:
            logger.exception("%s failed", method.__name__)
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("the server failed; its log says why")
        return b""

    return handler


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
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),
        )
    )
    server.add_generic_rpc_handlers((_Service(engine, metrics, access).handlers(),))
    if address.path:
        clear_unix_socket(address)
    elif not share_ports:
        # gRPC itself would take a share of the connections of a port that is taken.
        refuse_taken_port(address)
    target = f"unix:{address.path}" if address.path else _target(address)
    try:
        if tls and not address.path:
            credentials = grpc.ssl_server_credentials(
                [(tls.key, tls.certificate)],
                root_certificates=tls.client_ca,
                require_client_auth=tls.client_ca is not None,
            )
            server.add_secure_port(target, credentials)
        else:
            server.add_insecure_port(target)
        if address.path:
            Path(address.path).chmod(SOCKET_MODE)
    except (RuntimeError, OSError):
        reason = "is the address in use, or of no interface of this host?"
        raise StartError(f"cannot listen on {address.text}: gRPC could not bind it; {reason}") from None
    await server.start()
    return Listener(address.text, lambda: _stop(server, address, config.drain_seconds))


async def _stop(server: grpc.aio.Server, address: Address, stop_seconds: float) -> None:
    await server.stop(stop_seconds)
    remove_unix_socket(address)


def _target(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
