# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One gRPC call on an HTTP/2 stream: messages in, messages and a status out.

See "gRPC over HTTP2" in the gRPC repository. A call is answered where the last byte of its request
is read: a task is made only for an answer that has to be waited for.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from edgeml_runtime.codecs.compression import decompress
from edgeml_runtime.codecs.protobuf import raw_contents_at
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.begun import rest_of
from edgeml_runtime.transports.bodies import Body, Buffers, collect
from edgeml_runtime.transports.grpc.http2 import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    Connection,
    frame,
    header,
    status,
)
from edgeml_runtime.transports.grpc.service import CODES, Answer, Conversation

PREFIX_BYTES = 5

_NUMBERS = {
    "OK": 0,
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
_UNITS = {72: 3600.0, 77: 60.0, 83: 1.0, 109: 1e-3, 117: 1e-6, 110: 1e-9}  # H, M, S, m, u, n
_HEADERS = (
    status(200)
    + header(b"content-type", b"application/grpc")
    + header(b"grpc-accept-encoding", b"identity,deflate,gzip")
)
_OK = header(b"grpc-status", b"0")
# Clients with a retry policy wait that long before they try a server that has too much to do again (gRFC A6).
_RETRY_HINT = header(b"grpc-retry-pushback-ms", b"1000")
_UNQUOTED = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_ALWAYS_ANSWERED = frozenset({"ServerLive", "ServerReady", "Check"})

logger = logging.getLogger(__name__)


class Calls:
    """The calls of one listener: its methods, by path, and what bounds them all together."""

    def __init__(self, limits: Limits, draining: "asyncio.Future[None]") -> None:
        self.limits = limits
        #: Done when the listener stops: streams then end.
        self.draining = draining
        self.loop = asyncio.get_running_loop()
        self.answers: dict[bytes, tuple[str, Answer]] = {}
        self.conversations: dict[bytes, tuple[str, Conversation]] = {}
        self.under_way = 0
        self.buffers = Buffers(self.loop)
        #: Bytes of request messages that are not yet complete or not yet taken, with their prefixes.
        self.buffered = 0

    def add(self, service: str, answers: Mapping[str, Answer], conversations: Mapping[str, Conversation]) -> None:
        """Add the methods of a service."""
        for name, answer in answers.items():
            self.answers[f"/{service}/{name}".encode()] = (name, answer)
        for name, conversation in conversations.items():
            self.conversations[f"/{service}/{name}".encode()] = (name, conversation)

    def open(self, connection: Connection, number: int, headers: Mapping[bytes, bytes]) -> "Call":
        """A stream begins."""
        return Call(self, connection, number, headers)


class Call:
    """See grpc_service.Call and http2.Stream."""

    __slots__ = (
        "_begun",
        "_body",
        "_calls",
        "_connection",
        "_deadline",
        "_deadline_timer",
        "_ended",
        "_failed",
        "_headers",
        "_headers_sent",
        "_held",
        "_messages",
        "_missing",
        "_number",
        "_outgoing",
        "_over",
        "_parts",
        "_prefix",
        "_task",
        "_waiting",
        "_writing",
        "receive_window",
        "send_window",
    )

    def __init__(self, calls: Calls, connection: Connection, number: int, headers: Mapping[bytes, bytes]) -> None:
        self._calls = calls
        self._connection = connection
        self._number = number
        self._headers = headers
        self.send_window = 0
        self.receive_window = 0
        self._begun = False
        self._over = False  # the status was sent, or nobody waits for it
        # Receiving.
        self._prefix = b""
        self._missing = -1  # bytes of the message, -1 before its prefix is complete
        self._parts: list[bytes] = []
        self._body: Body | None = None  # of a large message, instead of parts
        #: As received; a compressed one, which may be much larger afterwards, is decompressed when it is taken.
        self._messages: deque[tuple[bool, bytes | memoryview]] = deque()
        self._held = 0  # bytes counted in calls.buffered
        self._ended = False
        self._failed: RequestError | None = None  # why no more is received
        self._waiting: asyncio.Future[None] | None = None
        # Answering.
        self._task: asyncio.Task[Any] | None = None
        self._headers_sent = False
        self._outgoing = memoryview(b"")
        self._writing: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    # -- what the connection calls -----------------------------------------------------------------------------------

    def data(self, data: bytes | memoryview, ended: bool) -> None:
        """Cut the body into messages."""
        if self._over:
            return
        self._ended = ended
        position = 0
        end = len(data)
        while position < end and self._failed is None:
            if self._missing < 0:
                taken = min(PREFIX_BYTES - len(self._prefix), end - position)
                self._prefix += data[position : position + taken]
                position += taken
                if len(self._prefix) == PREFIX_BYTES:
                    self._missing = int.from_bytes(self._prefix[1:], "big")
                    if self._missing > self._calls.limits.body_bytes:
                        self._failed = _too_large(self._calls.limits)
                    elif self._missing == 0:
                        self._complete()
                    elif self._missing >= bodies.LARGE:
                        at = raw_contents_at(data[position:])
                        self._body = self._calls.buffers.body(self._missing, 0, at)
                continue
            part = data[position : position + self._missing]
            position += len(part)
            self._missing -= len(part)
            if self._body is not None:
                self._body.add(part)
            else:
                collect(self._parts, bytes(part))
            self._hold(len(part))
            if self._missing == 0:
                self._complete()

    def ready(self) -> None:
        """Begin the call, or go on with it."""
        if self._over:
            return
        if self._begun:
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)
            return
        self._begun = True
        self._begin()

    def pump(self) -> None:
        """Send more of what the client takes slowly."""
        sent = self._connection.write_data(self._number, self, self._outgoing)
        self._outgoing = self._outgoing[sent:]
        if not self._outgoing and self._writing is not None and not self._writing.done():
            self._writing.set_result(None)

    def cancelled(self) -> None:
        """Nobody waits for the answer any more."""
        self._finish()
        if self._task is not None:
            # Not before its first step: what it is the rest of would never hear of it.
            self._calls.loop.call_soon(self._task.cancel)

    def stopped(self) -> None:
        """The time for a stop is over."""
        self._end("UNAVAILABLE", "the server stopped before the answer was computed")
        self.cancelled()

    # -- what methods call -------------------------------------------------------------------------------------------

    async def receive(self) -> bytes | memoryview:
        """See grpc_service.Call."""
        if not self._messages and not self._ended and self._failed is None:
            seconds = self._calls.limits.receive_seconds
            timer = self._calls.loop.call_later(seconds, self._receive_timeout, seconds)
            try:
                while not self._messages and not self._ended and self._failed is None:
                    await self._more()
            finally:
                timer.cancel()
        message = self._take()
        if message is None:
            raise invalid("the call brought no complete request")
        return message

    async def read(self) -> bytes | memoryview | None:
        """See grpc_service.Call."""
        while not self._messages and not self._ended and self._failed is None:
            if self._calls.draining.done():
                raise RequestError(Failure.UNAVAILABLE, "the server is stopping")
            await asyncio.wait((self._more(), self._calls.draining), return_when=asyncio.FIRST_COMPLETED)
        before = self._held
        message = self._take()
        if message is not None:
            self._connection.more_window(self._number, self, before - self._held)
        elif self._prefix:
            raise invalid("the last request is cut off")
        return message

    async def write(self, message: bytes) -> None:
        """See grpc_service.Call."""
        if self._over:
            raise asyncio.CancelledError
        before = b"" if self._headers_sent else frame(HEADERS, END_HEADERS, self._number, _HEADERS)
        self._headers_sent = True
        await self._send(message, before)

    def authorization(self) -> bytes | None:
        """See grpc_service.Call."""
        return self._headers.get(b"authorization")

    def certificate_name(self) -> str | None:
        """See grpc_service.Call."""
        return self._connection.certificate_name

    def seconds_left(self) -> float | None:
        """See grpc_service.Call."""
        return None if self._deadline is None else self._deadline - self._calls.loop.time()

    def client(self) -> str:
        """See grpc_service.Call."""
        return self._connection.client

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _hold(self, size: int) -> None:
        calls = self._calls
        self._held += size
        calls.buffered += size
        if calls.buffered > max(calls.limits.buffered_bytes, calls.limits.body_bytes + PREFIX_BYTES):
            message = f"requests of {calls.buffered} bytes are being received; try again later"
            self._failed = RequestError(Failure.TOO_MANY, message)

    def _release(self, size: int) -> None:
        self._held -= size
        self._calls.buffered -= size

    def _complete(self) -> None:
        parts = self._parts
        self._hold(PREFIX_BYTES)
        message = b"".join(parts) if self._body is None else self._body.content()
        self._messages.append((self._prefix[0] != 0, message))
        self._parts = []
        self._body = None
        self._prefix = b""
        self._missing = -1

    def _take(self) -> bytes | memoryview | None:
        if self._messages:
            is_compressed, message = self._messages.popleft()
            self._release(len(message) + PREFIX_BYTES)
            if is_compressed:
                coding = self._headers.get(b"grpc-encoding", b"identity").decode("latin-1")
                message = decompress(coding, message, self._calls.limits.body_bytes)
            return message
        if self._failed is not None:
            raise self._failed
        return None

    def _more(self) -> "asyncio.Future[None]":
        self._waiting = self._calls.loop.create_future()
        return self._waiting

    def _receive_timeout(self, seconds: float) -> None:
        self._failed = RequestError(Failure.DEADLINE, f"the request was not complete within {seconds:g} s")
        self.ready()

    # -- answering ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        calls = self._calls
        headers = self._headers
        path = headers.get(b":path", b"")
        if headers.get(b":method") != b"POST":
            self._refuse_http(405)
            return
        if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self._refuse_http(415)
            return
        name, answer = calls.answers.get(path, ("", None))
        conversation = None
        if answer is None:
            name, conversation = calls.conversations.get(path, ("", None))
            if conversation is None:
                self._end("UNIMPLEMENTED", f"there is no method {path[:200].decode('latin-1')}")
                return
        if (timeout := headers.get(b"grpc-timeout")) is not None:
            seconds = _seconds(timeout)
            if seconds is None:
                self._end("INVALID_ARGUMENT", "grpc-timeout is no time")
                return
            self._deadline = calls.loop.time() + seconds
        if calls.under_way >= calls.limits.connections and name not in _ALWAYS_ANSWERED:
            message = f"{calls.limits.connections} calls are under way; try again later"
            self._fail(RequestError(Failure.TOO_MANY, message))
            return
        calls.under_way += 1
        if answer is not None:
            # In a coroutine that is not yet a task: most calls are over with the first step.
            answering = self._answer(name, answer)
            try:
                waits_for = answering.send(None)
            except StopIteration:
                return
            self._task = calls.loop.create_task(rest_of(answering, waits_for))
        elif conversation is not None:
            self._task = calls.loop.create_task(self._converse(name, conversation))
        if self._deadline is not None:
            self._deadline_timer = calls.loop.call_at(self._deadline, self._expire)

    async def _answer(self, name: str, method: Answer) -> None:
        try:
            message = await method(self)
            if not self._over:
                before = b"" if self._headers_sent else frame(HEADERS, END_HEADERS, self._number, _HEADERS)
                after = frame(HEADERS, END_HEADERS | END_STREAM, self._number, _OK)
                # At once in one piece, if the client has room for it.
                if not self._try_send(message, before, after):
                    await self._writing_done()
                    self._connection.write(after)
                self._close()
        except RequestError as error:
            self._fail(error)
        except Exception:
            self._fail_internally(name)
        finally:
            self._calls.under_way -= 1

    async def _converse(self, name: str, method: Callable[["Call"], Awaitable[None]]) -> None:
        try:
            await method(self)
            self._end("OK", "")
        except RequestError as error:
            self._fail(error)
        except Exception:
            self._fail_internally(name)
        finally:
            self._calls.under_way -= 1

    async def _send(self, message: bytes, before: bytes) -> None:
        if not self._try_send(message, before, b""):
            await self._writing_done()

    def _try_send(self, message: bytes, before: bytes, after: bytes) -> bool:
        data = memoryview(b"".join((b"\0", len(message).to_bytes(4, "big"), message)))
        sent = self._connection.write_data(self._number, self, data, before, after)
        self._outgoing = data[sent:]
        return sent == len(data)

    async def _writing_done(self) -> None:
        self._writing = self._calls.loop.create_future()
        await self._writing

    def _fail(self, error: RequestError) -> None:
        self._end(CODES[error.failure], str(error), _RETRY_HINT if error.failure is Failure.TOO_MANY else b"")

    def _fail_internally(self, name: str) -> None:
        logger.exception("%s failed", name)
        self._end("INTERNAL", "the server failed; its log says why")

    def _end(self, code: str, message: str, more: bytes = b"") -> None:
        """Send the status, with headers when there were none before."""
        if self._over:
            return
        block = b"" if self._headers_sent else _HEADERS
        block += header(b"grpc-status", b"%d" % _NUMBERS[code])
        if message:
            block += header(b"grpc-message", quote(message, safe=_UNQUOTED).encode())
        self._connection.write(frame(HEADERS, END_HEADERS | END_STREAM, self._number, block + more))
        self._close()

    def _refuse_http(self, code: int) -> None:
        self._connection.write(frame(HEADERS, END_HEADERS | END_STREAM, self._number, status(code)))
        self._close()

    def _close(self) -> None:
        # A client that still sends its request is told to stop.
        self._finish()
        self._connection.close_stream(self._number, None if self._ended else NO_ERROR)

    def _finish(self) -> None:
        self._over = True
        self._release(self._held)
        self._parts = []
        self._body = None
        self._messages.clear()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()

    def _expire(self) -> None:
        self._end("DEADLINE_EXCEEDED", "the client's deadline is over")
        self.cancelled()


def _seconds(timeout: bytes) -> float | None:
    digits, unit = timeout[:-1], _UNITS.get(timeout[-1]) if timeout else None
    return int(digits) * unit if unit is not None and digits.isdigit() and len(digits) <= 8 else None


def _too_large(limits: Limits) -> RequestError:
    return RequestError(Failure.TOO_LARGE, f"the message is larger than {limits.body_bytes} bytes")
