# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""grpc.health.v1: the health protocol that load balancers and orchestrators ask by.

The server as a whole is named "" or by its inference service, each model by its name.
"""

import asyncio
from collections.abc import Mapping

from edgeml_runtime.codecs import health
from edgeml_runtime.engine.engine import Engine
from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.transports.credentials import check_model
from edgeml_runtime.transports.grpc.service import SERVICE, Answer, Call, Conversation, InferenceService

HEALTH_SERVICE = "grpc.health.v1.Health"

#: How often a watched state is looked at.
WATCH_SECONDS = 0.5


class HealthService:
    """The server's health needs no grant, as live and ready do not; that of a model does."""

    def __init__(self, engine: Engine, inference: InferenceService, draining: "asyncio.Future[None]") -> None:
        self._engine = engine
        self._inference = inference
        self._draining = draining

    def answers(self) -> Mapping[str, Answer]:
        """Methods with one request and one answer, by name."""
        return {"Check": self._check}

    def conversations(self) -> Mapping[str, Conversation]:
        """Methods with a stream of answers, by name."""
        return {"Watch": self._watch}

    async def _check(self, call: Call) -> bytes:
        service = health.parse_request(await call.receive())
        return health.status(self._serves(call, service))

    async def _watch(self, call: Call) -> None:
        """Tell the state now and at every change; a model that is not configured is unknown, and may come."""
        service = health.parse_request(await call.receive())
        told = None
        while True:
            try:
                state = health.status(self._serves(call, service))
            except RequestError as error:
                if error.failure is not Failure.NOT_FOUND:
                    raise
                state = health.unknown()
            if state != told:
                await call.write(state)
                told = state
            if self._draining.done():
                raise RequestError(Failure.UNAVAILABLE, "the server is stopping")
            await asyncio.wait((self._draining,), timeout=WATCH_SECONDS)

    def _serves(self, call: Call, service: str) -> bool:
        if service in ("", SERVICE):
            return self._engine.ready
        check_model(self._inference.authorise(call), service)
        return self._engine.is_loaded(service, "", self._inference.clients)
