# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The admin socket: what state the process is in, and how to change it. HTTP over a unix socket."""

import os
from collections.abc import Sequence
from typing import Protocol

from edgeml_runtime import __version__
from edgeml_runtime.codecs.json_binary import json_object
from edgeml_runtime.engine.engine import ModelStatus
from edgeml_runtime.errors import RequestError
from edgeml_runtime.transports.http import STATUS, Receive, Scope, Send, respond

_JSON = [(b"content-type", b"application/json")]


class Controlled(Protocol):
    """What the socket controls."""

    state: str

    def models(self) -> Sequence[ModelStatus]:
        """See engine.Engine.index."""

    async def activate(self) -> None:
        """See server.Server."""

    async def reload(self) -> None:
        """See server.Server."""

    def drain(self) -> None:
        """See server.Server."""


class AdminApplication:
    """The ASGI application of the admin listeners: ``GET /state``, ``POST /activate``, ``/reload``, ``/drain``."""

    def __init__(self, server: Controlled) -> None:
        self._server = server

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = 200
        error = ""
        try:
            match scope["method"], scope["path"]:
                case "GET", "/state":
                    pass
                case "POST", "/activate":
                    await self._server.activate()
                case "POST", "/reload":
                    await self._server.reload()
                case "POST", "/drain":
                    self._server.drain()
                    status = 202
                case _:
                    status = 404
                    error = "there are GET /state, POST /activate, POST /reload and POST /drain"
        except RequestError as failed:
            status, error = STATUS[failed.failure], str(failed)
        await respond(send, status, _JSON, json_object(**self._described(error)))

    def _described(self, error: str) -> dict[str, object]:
        models = [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in self._server.models()
        ]
        document = {"state": self._server.state, "pid": os.getpid(), "version": __version__, "models": models}
        return document | ({"error": error} if error else {})
