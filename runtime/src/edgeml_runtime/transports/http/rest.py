# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over REST: paths, methods, status codes and headers.

Specification: section "HTTP/REST".
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple
from urllib.parse import unquote

from edgeml_runtime import SERVER_NAME, __version__
from edgeml_runtime.codecs import json_binary
from edgeml_runtime.codecs.compression import DECOMPRESSED_HERE, accepted, compress, decompress
from edgeml_runtime.codecs.request import check_same_tensors
from edgeml_runtime.config import Config, Grant
from edgeml_runtime.engine.engine import READY, Engine
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.request_log import log_request
from edgeml_runtime.transports.credentials import EVERYTHING, Access, check_manage, check_model
from edgeml_runtime.transports.elsewhere import Elsewhere
from edgeml_runtime.transports.http.messages import JSON, STATUS, Answer, Request, error_answer, failure_answer

_JSON_LENGTH_HEADER = b"inference-header-content-length"
_CLIENT_GONE = "499"  # as nginx logs it; nobody is left to be told
_ROUTES = 256
# A target as proxies send it (RFC 9112, section 3.2.2).
_ABSOLUTE = re.compile(r"^https?://[^/]*", re.IGNORECASE)
# Bytes of a body from which on it is worth to find out early that the model is not there.
_LARGE_BODY = 64 * 1024
# Bytes of a body that are compressed on the event loop: a thread costs 50 microseconds.
_COMPRESSED_HERE = 8 * 1024
# Below that the client's network is faster than the compression.
_COMPRESSED_FROM = 2 * 1024

logger = logging.getLogger(__name__)


class _Route(NamedTuple):
    """What a URL means. ``handler`` answers, ``method`` is the one it takes (GET: HEAD as well)."""

    handler: Callable[[Request, "_Route"], Awaitable[Answer]] | None
    method: bytes
    model: str
    version: str
    path: str
    is_open: bool = False
    is_inference: bool = False
    is_management: bool = False


class RestApplication:
    """The application of the REST listeners. With ``access``, all but live and ready require a grant."""

    name = "REST"

    def __init__(self, engine: Engine, metrics: Metrics, access: Access | None, config: Config) -> None:
        self._engine = engine
        self._metrics = metrics
        self._access = access
        # On a unix socket, which asks for no grant, every model is there: the host's own checks come this way.
        self._clients = None if access is None else "rest"
        self._limits = config.limits
        self._log_requests = config.log_requests
        # One body after the other: they would only take the interpreter from each other.
        self._elsewhere = Elsewhere()
        self._decompressed_bytes = 0  # of bodies whose requests are not yet answered
        self._route = lru_cache(_ROUTES)(self._find_route)
        self._digest_line = lru_cache(_ROUTES)(_digest_line)

    def admit(self, request: Request) -> Answer | None:
        """Refuse by path, method and credentials, before a body is read."""
        route: _Route = self._route(request.url)
        request.context = route
        method = b"GET" if request.method == b"HEAD" else request.method
        if method != route.method and route.handler is not None:
            return _not_allowed(request.method, route.method)
        try:
            if self._access is not None and not route.is_open:
                self._check_access(request, route, self._access)
            if route.handler is None:
                raise RequestError(Failure.NOT_FOUND, f"no such path: {route.path}")
            if route.is_inference and int(request.headers.get(b"content-length", b"0")) >= _LARGE_BODY:
                self._engine.model(route.model, route.version, self._clients)
        except RequestError as error:
            answer = failure_answer(error)
            if route.is_inference:
                self._account(request, "", "", str(answer[0]), 0.0, None)
            return answer
        if route.is_inference and _JSON_LENGTH_HEADER in request.headers:
            length = request.headers[_JSON_LENGTH_HEADER]
            request.aligned_at = int(length) if length.isdigit() and len(length) < 10 else 0  # for the binary tensors
        return None

    async def answer(self, request: Request) -> Answer:
        """Answer one request."""
        route: _Route = request.context
        try:
            answer = await route.handler(request, route)  # type: ignore[misc]
        except RequestError as error:
            answer = failure_answer(error)
        if b"accept-encoding" in request.headers:
            return await _compressed(answer, request.headers[b"accept-encoding"].decode("latin-1"))
        return answer

    # -- private -----------------------------------------------------------------------------------------------------

    def _find_route(self, url: bytes) -> _Route:
        path = _ABSOLUTE.sub("", url.partition(b"?")[0].decode("latin-1"))
        parts = [unquote(part) for part in path.split("/")[1:]]
        get = b"GET"
        match parts:
            case ["v2", "models", name, "infer"]:
                return _Route(self._infer, b"POST", name, "", path, is_inference=True)
            case ["v2", "models", name, "versions", version, "infer"] if version:
                return _Route(self._infer, b"POST", name, version, path, is_inference=True)
            case ["v2", "health", "live"]:
                return _Route(self._live, get, "", "", path, is_open=True)
            case ["v2", "health", "ready"]:
                return _Route(self._ready, get, "", "", path, is_open=True)
            case ["v2"] | ["v2", ""]:
                return _Route(self._server_metadata, get, "", "", path)
            case ["v2", "models", name, "ready"]:
                return _Route(self._model_ready, get, name, "", path)
            case ["v2", "models", name, "versions", version, "ready"] if version:
                return _Route(self._model_ready, get, name, version, path)
            case ["v2", "models", name]:
                return _Route(self._model_metadata, get, name, "", path)
            case ["v2", "models", name, "versions", version] if version:
                return _Route(self._model_metadata, get, name, version, path)
            case ["openapi.json"]:
                return _Route(self._openapi, get, "", "", path)
            case ["v2", "repository", "index"]:
                return _Route(self._index, b"POST", "", "", path)
            case ["v2", "repository", "models", name, "load"]:
                return _Route(self._load, b"POST", name, "", path, is_management=True)
            case ["v2", "repository", "models", name, "unload"]:
                return _Route(self._unload, b"POST", name, "", path, is_management=True)
        return _Route(None, get, "", "", path)

    def _grant(self, request: Request, access: Access) -> Grant:
        return access.grant(request.headers.get(b"authorization"), request.certificate_name)

    def _check_access(self, request: Request, route: _Route, access: Access) -> None:
        grant = self._grant(request, access)
        if route.model:
            check_model(grant, route.model)
        if route.is_management:
            check_manage(grant)

    async def _live(self, _request: Request, _route: _Route) -> Answer:
        return 200, JSON, json_binary.json_object(live=True)

    async def _ready(self, _request: Request, _route: _Route) -> Answer:
        ready = self._engine.ready
        return 200 if ready else 503, JSON, json_binary.json_object(ready=ready)

    async def _server_metadata(self, _request: Request, _route: _Route) -> Answer:
        return 200, JSON, json_binary.server_metadata(SERVER_NAME, __version__)

    async def _openapi(self, _request: Request, _route: _Route) -> Answer:
        from edgeml_runtime.codecs.openapi import openapi  # who never asks does not pay for it

        return 200, JSON, openapi()

    async def _model_ready(self, _request: Request, route: _Route) -> Answer:
        ready = self._engine.is_loaded(route.model, route.version, self._clients)
        return 200 if ready else 503, JSON, json_binary.json_object(name=route.model, ready=ready)

    async def _model_metadata(self, _request: Request, route: _Route) -> Answer:
        model = self._engine.model(route.model, route.version, self._clients)
        body = json_binary.model_metadata(model, self._engine.versions(route.model, self._clients))
        return 200, JSON + self._digest_line(model.digest), body

    async def _index(self, request: Request, _route: _Route) -> Answer:
        ready_only = json_binary.wants_ready_only(request.body)
        grant = EVERYTHING if self._access is None else self._grant(request, self._access)
        body = json_binary.repository_index(
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in self._engine.index(self._clients)
            if (grant.models is None or model.name in grant.models) and (model.state == READY or not ready_only)
        )
        return 200, JSON, body

    async def _load(self, request: Request, route: _Route) -> Answer:
        json_binary.check_no_override(request.body)
        await asyncio.create_task(self._engine.load(route.model))
        return 200, JSON, b"{}"

    async def _unload(self, request: Request, route: _Route) -> Answer:
        json_binary.check_no_override(request.body)
        await asyncio.create_task(self._engine.unload(route.model))
        return 200, JSON, b"{}"

    async def _infer(self, request: Request, route: _Route) -> Answer:
        started = perf_counter()
        known = version = ""
        status = "500"
        asked: InferenceRequest | None = None
        decompressed = 0
        try:
            headers = request.headers
            body, request.body = request.body, b""
            if b"content-encoding" in headers:
                received = len(body)
                body = await self._decompressed(headers[b"content-encoding"].decode("latin-1"), body)
                decompressed = max(0, len(body) - received)
                self._hold_decompressed(decompressed)
            # Only now: while a body is decompressed elsewhere, another version may take the place of this one.
            model = self._engine.model(route.model, route.version, self._clients)
            known, version = model.name, model.version
            json_length = _json_length(headers[_JSON_LENGTH_HEADER]) if _JSON_LENGTH_HEADER in headers else None
            limits = self._limits
            if json_binary.takes_long(model, body, json_length, limits):
                decoded, in_binary = await self._elsewhere(json_binary.decode, model, body, json_length, limits)
                before, model = model, self._engine.model(route.model, route.version, self._clients)
                check_same_tensors(before, model)
            else:
                decoded, in_binary = json_binary.decode(model, body, json_length, limits, in_portions=False)
            del body  # no need to keep what was JSON
            asked = decoded
            results = await model.infer(decoded)
            decoded.inputs = {}  # while the answer is written and sent
            lines = self._digest_line(model.digest)
            if json_binary.answer_takes_long(decoded, results, in_binary):
                head, raw = await self._elsewhere(json_binary.encode_parts, model, decoded, results, in_binary)
            else:
                head, raw = json_binary.encode_parts(model, decoded, results, in_binary)
            del results
            status = "200"
            model.metrics.total(perf_counter() - started)
            if not in_binary:
                return 200, lines + JSON, head if isinstance(head, bytes) else [head]
            lines = b"%bcontent-type: application/octet-stream\r\n%b: %d\r\n" % (lines, _JSON_LENGTH_HEADER, len(head))
            return 200, lines, [head, *raw]
        except RequestError as error:
            status = str(STATUS[error.failure])
            raise
        except asyncio.CancelledError:
            status = _CLIENT_GONE
            raise
        finally:
            self._decompressed_bytes -= decompressed
            self._account(request, known, version, status, perf_counter() - started, asked)

    async def _decompressed(self, coding: str, body: bytes | memoryview) -> bytes | memoryview:
        if coding.lower() == "identity":
            return body
        if len(body) <= DECOMPRESSED_HERE:
            return decompress(coding, body, self._limits.body_bytes)
        return await self._elsewhere(decompress, coding, body, self._limits.body_bytes)

    def _hold_decompressed(self, size: int) -> None:
        """Count what a small body became, as bodies are counted that come as large."""
        self._decompressed_bytes += size
        if size < self._decompressed_bytes > self._limits.buffered_bytes:
            message = f"bodies of {self._limits.buffered_bytes} bytes are under way, the most allowed; try again later"
            raise RequestError(Failure.TOO_MANY, message)

    def _account(
        self, request: Request, model: str, version: str, status: str, total: float, asked: InferenceRequest | None
    ) -> None:
        self._metrics.count_request(model, "rest", status)
        if not self._log_requests:
            return
        if asked is None:
            log_request("rest", model, version, status, "", request.client, total)
        else:
            times = (total, asked.queue_seconds, asked.compute_seconds)
            log_request("rest", model, version, status, asked.id, request.client, *times)


async def _compressed(answer: Answer, accept_encoding: str) -> Answer:
    """The answer in a coding that the client accepts, if it is large enough to gain."""
    status, lines, body = answer
    parts = [body] if isinstance(body, bytes) else body
    size = sum(map(len, parts))
    if size < _COMPRESSED_FROM or not (coding := accepted(accept_encoding)):
        return answer
    if size <= _COMPRESSED_HERE:
        shorter = compress(coding, parts)
    else:
        shorter = await asyncio.get_running_loop().run_in_executor(None, compress, coding, parts)
    if len(shorter) >= size:
        return answer
    return status, b"%bcontent-encoding: %b\r\nvary: accept-encoding\r\n" % (lines, coding.encode()), shorter


def _not_allowed(method: bytes, allowed: bytes) -> Answer:
    allowed_methods = "GET, HEAD" if allowed == b"GET" else allowed.decode()
    message = f"method {method.decode()} is not allowed, {allowed.decode()} is"
    return error_answer(405, message, f"allow: {allowed_methods}\r\n".encode())


def _digest_line(digest: str) -> bytes:
    return f"x-edgeml-model-digest: {digest}\r\n".encode() if digest else b""


def _json_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise invalid(f"header Inference-Header-Content-Length is '{value.decode('latin-1')}', not a number of bytes")
    return int(value)
