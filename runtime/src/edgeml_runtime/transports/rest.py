# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over REST: paths, methods, status codes and headers.

Specification: section "HTTP/REST".
"""

import asyncio
import logging
from time import perf_counter

from edgeml_runtime import SERVER_NAME, __version__
from edgeml_runtime.codecs import json_binary
from edgeml_runtime.config import Config, Grant
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import EVERYTHING, Access, check_model
from edgeml_runtime.transports.http import STATUS, Headers, Receive, Scope, Send, certificate_name, header, respond

_JSON: Headers = [(b"content-type", b"application/json")]
_JSON_LENGTH_HEADER = b"inference-header-content-length"
_DIGEST_HEADER = b"x-edgeml-model-digest"

_Answer = tuple[int, Headers, bytes]

logger = logging.getLogger(__name__)


class _ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class RestApplication:
    """The ASGI application of the REST listeners. With ``access``, all but live and ready require a grant."""

    def __init__(self, engine: Engine, metrics: Metrics, access: Access | None, config: Config) -> None:
        self._engine = engine
        self._metrics = metrics
        self._access = access
        self._max_request_bytes = config.limits.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            status, headers, body = await self._answer(scope, receive)
        except _ClientGone:
            return
        except RequestError as error:
            status, headers, body = _error(error)
        except asyncio.CancelledError:  # the time for a stop is over
            status, headers, body = _error(
                RequestError(Failure.UNAVAILABLE, "the server stopped before the answer was computed")
            )
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            status, headers, body = _error(RequestError(Failure.INTERNAL, "the server failed; its log says why"))
        await respond(send, status, headers, body)

    async def _answer(self, scope: Scope, receive: Receive) -> _Answer:
        match scope["path"].split("/")[1:]:
            case ["v2", "models", name, "infer"]:
                return await self._infer(scope, receive, name, "")
            case ["v2", "models", name, "versions", version, "infer"]:
                return await self._infer(scope, receive, name, version)
            case ["v2", "health", "live"]:
                return _method(scope, "GET") or (200, _JSON, json_binary.json_object(live=True))
            case ["v2", "health", "ready"]:
                ready = self._engine.ready
                return _method(scope, "GET") or (200 if ready else 503, _JSON, json_binary.json_object(ready=ready))
            case ["v2"] | ["v2", ""]:
                self._authorise(scope)
                return _method(scope, "GET") or (200, _JSON, json_binary.server_metadata(SERVER_NAME, __version__))
            case ["v2", "models", name, "ready"]:
                return self._model_ready(scope, name, "")
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._model_ready(scope, name, version)
            case ["v2", "models", name]:
                return self._model_metadata(scope, name, "")
            case ["v2", "models", name, "versions", version]:
                return self._model_metadata(scope, name, version)
        self._authorise(scope)
        raise RequestError(Failure.NOT_FOUND, f"no such path: {scope['path']}")

    def _model_ready(self, scope: Scope, name: str, version: str) -> _Answer:
        check_model(self._authorise(scope), name)
        if refused := _method(scope, "GET"):
            return refused
        ready = self._engine.is_loaded(name, version)
        return 200 if ready else 503, _JSON, json_binary.json_object(name=name, ready=ready)

    def _model_metadata(self, scope: Scope, name: str, version: str) -> _Answer:
        check_model(self._authorise(scope), name)
        if refused := _method(scope, "GET"):
            return refused
        model = self._engine.model(name, version)
        return 200, [*_JSON, (_DIGEST_HEADER, model.digest.encode())], json_binary.model_metadata(model)

    async def _infer(self, scope: Scope, receive: Receive, name: str, version: str) -> _Answer:
        if refused := _method(scope, "POST"):
            return refused
        known = ""
        status = 500
        try:
            check_model(self._authorise(scope), name)
            model = self._engine.model(name, version)
            known = model.name
            asked = dict(scope["headers"])
            body = await self._read(asked, receive)
            started = perf_counter()
            request, in_binary = json_binary.decode(model, body, _json_length(asked.get(_JSON_LENGTH_HEADER)))
            results = await model.infer(request)
            answer, answer_json_length = json_binary.encode(model, request, results, in_binary)
            headers: Headers = [(_DIGEST_HEADER, model.digest.encode())]
            if answer_json_length is None:
                headers += _JSON
            else:
                headers.append((b"content-type", b"application/octet-stream"))
                headers.append((_JSON_LENGTH_HEADER, b"%d" % answer_json_length))
            status = 200
            model.metrics.total(perf_counter() - started)
            return status, headers, answer
        except RequestError as error:
            status = STATUS[error.failure]
            raise
        except _ClientGone:
            status = 499  # as nginx logs it; nobody is left to be told
            raise
        finally:
            self._metrics.count_request(known, "rest", str(status))

    def _authorise(self, scope: Scope) -> Grant:
        if self._access is None:
            return EVERYTHING
        return self._access.grant(header(scope, b"authorization"), certificate_name(scope))

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. Raises RequestError (too large) as soon as it exceeds the limit."""
        if (encoding := headers.get(b"content-encoding")) not in (None, b"identity"):
            raise invalid(f"content-encoding {encoding!r} is not supported")
        if (
            int(headers.get(b"content-length", 0)) > self._max_request_bytes
        ):  # digits only: the HTTP parser has checked it
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            part: bytes = message["body"]
            size += len(part)
            if size > self._max_request_bytes:
                raise self._too_large()
            if not message["more_body"]:
                return b"".join((*parts, part)) if parts else part
            parts.append(part)

    def _too_large(self) -> RequestError:
        return RequestError(Failure.TOO_LARGE, f"the body is larger than {self._max_request_bytes} bytes")


def _method(scope: Scope, allowed: str) -> _Answer | None:
    if scope["method"] == allowed:
        return None
    message = f"method {scope['method']} is not allowed, {allowed} is"
    return 405, [*_JSON, (b"allow", allowed.encode())], json_binary.json_object(error=message)


def _error(error: RequestError) -> _Answer:
    headers = _JSON
    if error.failure is Failure.UNAUTHENTICATED:
        headers = [*_JSON, (b"www-authenticate", b"Bearer")]
    return STATUS[error.failure], headers, json_binary.json_object(error=str(error))


def _json_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise invalid(f"header Inference-Header-Content-Length is {value!r}, not a number of bytes")
    return int(value)
