# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol over gRPC: what each method does, whatever library carries the calls.

Messages pass as bytes; the codec parses them. Specification: section "GRPC", and its extensions for
streams and for the model repository.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Protocol

from edgeml_runtime import SERVER_NAME, __version__
from edgeml_runtime.codecs import protobuf
from edgeml_runtime.codecs.request import check_same_tensors
from edgeml_runtime.config import Config, Grant
from edgeml_runtime.engine.engine import READY, Engine
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.request_log import log_request
from edgeml_runtime.transports.credentials import EVERYTHING, Access, check_manage, check_model
from edgeml_runtime.transports.elsewhere import Elsewhere

SERVICE = "inference.GRPCInferenceService"

#: Requests of one stream that are under way at once.
STREAM_PARALLEL = 16

CODES = {
    Failure.INVALID: "INVALID_ARGUMENT",
    Failure.UNAUTHENTICATED: "UNAUTHENTICATED",
    Failure.FORBIDDEN: "PERMISSION_DENIED",
    Failure.NOT_FOUND: "NOT_FOUND",
    Failure.UNIMPLEMENTED: "UNIMPLEMENTED",
    Failure.TOO_LARGE: "RESOURCE_EXHAUSTED",
    Failure.TOO_MANY: "RESOURCE_EXHAUSTED",
    Failure.DEADLINE: "DEADLINE_EXCEEDED",
    Failure.UNAVAILABLE: "UNAVAILABLE",
    Failure.INTERNAL: "INTERNAL",
}


class Call(Protocol):
    """A call under way, as the transport has it."""

    async def receive(self) -> bytes | memoryview:
        """The one request message. Raises RequestError when it is missing or does not come in time."""

    async def read(self) -> bytes | memoryview | None:
        """The next message of a stream; None after the last.

        Raises RequestError (unavailable) when the server stops before another one has come.
        """

    def request_waits(self, size: int) -> None:
        """A message of so many bytes was read and is not yet answered. When too many are, no more is read."""

    def request_goes(self, size: int) -> None:
        """It is answered now."""

    async def write(self, message: bytes) -> None:
        """Send an answer on a stream; waits while the client does not take it."""

    def answer_waits(self, size: int) -> None:
        """An answer of so many bytes is there before it can be written. Raises RequestError when too many wait."""

    def answer_goes(self, size: int) -> None:
        """It is written now."""

    def authorization(self) -> bytes | None:
        """The value of the metadata ``authorization``."""

    def certificate_name(self) -> str | None:
        """The common name of the client's verified certificate."""

    def seconds_left(self) -> float | None:
        """Until the client's deadline; None when it has none."""

    def client(self) -> str:
        """The client's address, "unix" on a unix socket."""


Answer = Callable[[Call], Awaitable[bytes]]
Conversation = Callable[[Call], Awaitable[None]]


class InferenceService:
    """``inference.GRPCInferenceService``. With ``access``, all but live and ready require a grant."""

    def __init__(self, engine: Engine, metrics: Metrics, access: Access | None, config: Config) -> None:
        self._engine = engine
        self._metrics = metrics
        self._access = access
        # On a unix socket, which asks for no grant, every model is there: the host's own checks come this way.
        self.clients = None if access is None else "grpc"
        self._limits = config.limits
        self._log_requests = config.log_requests
        self._elsewhere = Elsewhere()

    def answers(self) -> Mapping[str, Answer]:
        """Methods with one request and one answer, by name."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }

    def conversations(self) -> Mapping[str, Conversation]:
        """Methods with a stream of requests and a stream of answers, by name."""
        return {"ModelStreamInfer": self._model_stream_infer}

    def authorise(self, call: Call) -> Grant:
        """What the client may do. Raises RequestError (unauthenticated)."""
        if self._access is None or self._access.is_open:
            return EVERYTHING
        return self._access.grant(call.authorization(), call.certificate_name())

    # -- private ---------------------------------------------------------------------------------------------------

    async def _server_live(self, call: Call) -> bytes:
        await call.receive()
        return protobuf.server_live()

    async def _server_ready(self, call: Call) -> bytes:
        await call.receive()
        return protobuf.server_ready(self._engine.ready)

    async def _server_metadata(self, call: Call) -> bytes:
        self.authorise(call)
        await call.receive()
        return protobuf.server_metadata(SERVER_NAME, __version__)

    async def _model_ready(self, call: Call) -> bytes:
        grant = self.authorise(call)
        name, version = protobuf.parse_model(await call.receive())
        check_model(grant, name)
        return protobuf.model_ready(self._engine.is_loaded(name, version, self.clients))

    async def _model_metadata(self, call: Call) -> bytes:
        grant = self.authorise(call)
        name, version = protobuf.parse_model(await call.receive())
        check_model(grant, name)
        model = self._engine.model(name, version, self.clients)
        return protobuf.model_metadata(model, self._engine.versions(name, self.clients))

    async def _repository_index(self, call: Call) -> bytes:
        grant = self.authorise(call)
        only_ready = protobuf.parse_repository_index(await call.receive())
        return protobuf.repository_index(
            (status.name, status.version, status.state, status.reason)
            for status in self._engine.index(self.clients)
            if (grant.models is None or status.name in grant.models) and (not only_ready or status.state == READY)
        )

    async def _repository_model_load(self, call: Call) -> bytes:
        grant = self.authorise(call)
        name, parameters = protobuf.parse_repository_load(await call.receive())
        check_manage(grant)
        check_model(grant, name)
        if parameters:
            raise invalid(f"parameter {parameters[0]!r}: a model is loaded as it is configured at the server")
        await self._engine.load(name)
        return protobuf.repository_load()

    async def _repository_model_unload(self, call: Call) -> bytes:
        grant = self.authorise(call)
        name = protobuf.parse_repository_unload(await call.receive())
        check_manage(grant)
        check_model(grant, name)
        await self._engine.unload(name)
        return protobuf.repository_unload()

    async def _model_infer(self, call: Call) -> bytes:
        return await self._infer(call, None)

    async def _model_stream_infer(self, call: Call) -> None:
        """Read on while answers are computed; write them in the order of their requests."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        free = asyncio.Semaphore(STREAM_PARALLEL)
        reading = asyncio.create_task(self._read_stream(call, answers, free))
        answer = None
        try:
            while (answer := await answers.get()) is not None:
                written = await answer
                call.answer_goes(len(written))
                await call.write(written)
                del written
                free.release()
            await reading
        finally:
            for task in (reading, answer, *(answers.get_nowait() for _ in range(answers.qsize()))):
                if task is not None:
                    task.cancel()
            del task, answer, reading  # their errors' tracebacks know this frame

    async def _read_stream(
        self, call: Call, answers: "asyncio.Queue[asyncio.Task[bytes] | None]", free: asyncio.Semaphore
    ) -> None:
        try:
            self.authorise(call)
            await free.acquire()
            while (body := await call.read()) is not None:
                call.request_waits(len(body))
                answers.put_nowait(asyncio.create_task(self._stream_answer(call, body)))
                del body
                await free.acquire()
        finally:
            answers.put_nowait(None)

    async def _stream_answer(self, call: Call, body: bytes | memoryview) -> bytes:
        try:
            answer = protobuf.stream_answer(await self._infer(call, body))
            call.answer_waits(len(answer))
            return answer
        except RequestError as error:
            return protobuf.stream_error(protobuf.request_id(body, self._limits), str(error))
        finally:
            call.request_goes(len(body))

    async def _infer(self, call: Call, body: bytes | memoryview | None) -> bytes:
        """Answer one inference request: ``body``, or the one that the call has yet to receive."""
        known = version = ""
        code = "INTERNAL"
        request = None
        started = perf_counter()
        try:
            grant = self.authorise(call)
            if body is None:
                body = await call.receive()
                started = perf_counter()
            inference = protobuf.parse_inference(body, self._limits)
            message = inference[0]
            body = None  # no need to keep what was parsed
            check_model(grant, message.model_name)
            model = self._engine.model(message.model_name, message.model_version, self.clients)
            known, version = model.name, model.version
            if protobuf.takes_long(model, inference):
                request = await self._elsewhere(protobuf.decode, model, inference, self._limits)
                before, model = model, self._engine.model(message.model_name, message.model_version, self.clients)
                check_same_tensors(before, model)
            else:
                request = protobuf.decode(model, inference, self._limits)
            del message, inference
            _set_timeout(request, call.seconds_left())
            results = await model.infer(request)
            request.inputs = {}  # while the answer is written and sent
            answer = protobuf.encode(model, request, results)
            code = "OK"
            model.metrics.total(perf_counter() - started)
            return answer
        except RequestError as error:
            code = CODES[error.failure]
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            self._metrics.count_request(known, "grpc", code)
            if self._log_requests:
                total = perf_counter() - started
                if request is None:
                    log_request("grpc", known, version, code, "", call.client(), total)
                else:
                    times = (total, request.queue_seconds, request.compute_seconds)
                    log_request("grpc", known, version, code, request.id, call.client(), *times)


def _set_timeout(request: InferenceRequest, seconds_left: float | None) -> None:
    """Let the client's deadline be the request's, if it comes earlier."""
    if seconds_left is None:
        return
    if seconds_left <= 0:
        raise RequestError(Failure.DEADLINE, "the client's deadline is over")
    if request.timeout is None or seconds_left < request.timeout:
        request.timeout = seconds_left
