# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The admin socket: what state the process is in, and how to change it. HTTP over a unix socket."""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from edgeml_runtime import __version__
from edgeml_runtime.codecs.json_binary import json_body, json_object, sampled_parts
from edgeml_runtime.engine.engine import ModelStatus
from edgeml_runtime.engine.sampling import Sampling
from edgeml_runtime.errors import RequestError
from edgeml_runtime.transports.http.messages import JSON, STATUS, Answer, Request


class Controlled(Protocol):
    """What the socket controls."""

    state: str
    sampling: Sampling

    def models(self) -> Sequence[ModelStatus]:
        """See engine.Engine.index."""

    def activate(self) -> Coroutine[Any, Any, None]:
        """See server.Server."""

    def reload(self) -> Coroutine[Any, Any, None]:
        """See server.Server."""

    def drain(self) -> None:
        """See server.Server."""


class AdminApplication:
    """The application of the admin listeners: ``GET /state``, ``POST /activate``, ``/reload``, ``/drain``.

    ``POST /sample`` begins what engine.sampling does, ``GET /sample`` counts, ``POST /sample/next`` takes one.
    """

    name = "admin"

    def __init__(self, server: Controlled) -> None:
        self._server = server

    def admit(self, _request: Request) -> Answer | None:
        """Whoever can open the socket may ask for everything."""
        return None

    async def answer(self, request: Request) -> Answer:
        """Do what is asked and tell the state."""
        status = 200
        error = ""
        try:
            match request.method, request.url:
                case b"GET", b"/state":
                    pass
                case b"POST", b"/activate":
                    await asyncio.create_task(self._server.activate())
                case b"POST", b"/reload":
                    await asyncio.create_task(self._server.reload())
                case b"POST", b"/drain":
                    self._server.drain()
                    status = 202
                case b"POST", b"/sample":
                    self._server.sampling.start(json_body(request.body))
                case b"GET", b"/sample":
                    return 200, JSON, json_object(models=self._server.sampling.counts())
                case b"POST", b"/sample/next":
                    return await self._next_sampled()
                case _:
                    status = 404
                    error = "there are GET /state, /sample and POST /activate, /reload, /drain, /sample, /sample/next"
        except RequestError as failed:
            status, error = STATUS[failed.failure], str(failed)
        return status, JSON, json_object(**self._described(error))

    async def _next_sampled(self) -> Answer:
        sampled = self._server.sampling.take()
        if sampled is None:
            return 200, JSON, b"{}"
        # Elsewhere: strings are encoded one by one.
        head, raw = await asyncio.to_thread(sampled_parts, sampled.model, sampled.inputs, sampled.outputs)
        lines = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n" % len(head)
        return 200, lines, [head, *raw]

    def _described(self, error: str) -> dict[str, object]:
        models = [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in self._server.models()
        ]
        document = {"state": self._server.state, "pid": os.getpid(), "version": __version__, "models": models}
        return document | ({"error": error} if error else {})
