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
from edgeml_runtime.config import Address
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import TlsMaterial, is_authorised
from edgeml_runtime.transports.listener import SOCKET_MODE, Listener, clear_unix_socket, remove_unix_socket

SERVICE = "inference.GRPCInferenceService"

_CODES = {
    Failure.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Failure.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Failure.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Failure.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Failure.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Failure.INTERNAL: grpc.StatusCode.INTERNAL,
}

_Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]

logger = logging.getLogger(__name__)


class _Service:
    def __init__(self, engine: Engine, metrics: Metrics, token: str | None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._token = token

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
        self._authorise(context)
        return protobuf.model_ready(self._engine.is_loaded(*protobuf.parse_model(body)))

    async def _model_metadata(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._authorise(context)
        return protobuf.model_metadata(self._engine.model(*protobuf.parse_model(body)))

    async def _model_infer(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started = perf_counter()
        known = ""
        code = grpc.StatusCode.INTERNAL
        try:
            self._authorise(context)
            message = protobuf.parse_inference(body)
            model = self._engine.model(message.model_name, message.model_version)
            known = model.name
            request = protobuf.decode(model, message)
            results = await model.infer(request.inputs, request.outputs)
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

    def _authorise(self, context: grpc.aio.ServicerContext) -> None:
        if not self._token:
            return
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and is_authorised(self._token, value.encode()):
                return
        raise RequestError(Failure.UNAUTHENTICATED, "a valid bearer token is required")


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
    token: str | None,
    max_request_bytes: int,
    stop_seconds: int,
) -> Listener:
    """Open one listener; TLS applies to TCP only. ``stop_seconds`` bounds a stop. Raises StartError."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_send_message_length", -1),
            # A port that is taken must be an error, not a share of its connections.
            ("grpc.so_reuseport", 0),
        )
    )
    server.add_generic_rpc_handlers((_Service(engine, metrics, token).handlers(),))
    if address.path:
        clear_unix_socket(address)
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
    return Listener(address, lambda: _stop(server, address, stop_seconds))


async def _stop(server: grpc.aio.Server, address: Address, stop_seconds: int) -> None:
    await server.stop(stop_seconds)
    remove_unix_socket(address)


def _target(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
