# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One gRPC call on an HTTP/2 stream: how it begins, its answers, its status (see "gRPC over HTTP2" of gRPC).

A call is answered where the last byte of its request is read: a task is made only for an answer that has
to be waited for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from edgeml_runtime.errors import Failure, RequestError
from edgeml_runtime.transports.begun import rest_of
from edgeml_runtime.transports.grpc.calls import Calls
from edgeml_runtime.transports.grpc.frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    PROTOCOL_ERROR,
    frame,
    header,
    status,
)
from edgeml_runtime.transports.grpc.incoming import ACCEPTED_CODINGS, Incoming
from edgeml_runtime.transports.grpc.service import CODES, Answer
from edgeml_runtime.transports.grpc.windows import Windows
from edgeml_runtime.transports.unsent import LARGE

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
    + header(b"grpc-accept-encoding", ",".join(ACCEPTED_CODINGS).encode())
)
_OK = header(b"grpc-status", b"0")
# Clients with a retry policy wait that long before they try a server that has too much to do again (gRFC A6).
_RETRY_HINT = header(b"grpc-retry-pushback-ms", b"1000")
_UNQUOTED = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_ALWAYS_ANSWERED = frozenset({"ServerLive", "ServerReady", "Check"})

logger = logging.getLogger(__name__)


class Call(Incoming):
    """See service.Call and windows.Stream."""

    __slots__ = (
        "_deadline",
        "_deadline_timer",
        "_headers_sent",
        "_outgoing",
        "_task",
        "_unsent",
        "_writing",
        "send_window",
    )

    def __init__(self, calls: Calls, connection: Windows, number: int, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(calls, connection, number, headers)
        self.send_window = 0
        self._task: asyncio.Task[Any] | None = None
        self._headers_sent = False
        self._outgoing = memoryview(b"")
        self._unsent = 0  # bytes of answers that wait for the client
        self._writing: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    # -- what the connection calls -----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send more of what the client takes slowly."""
        sent = self._connection.write_data(self._number, self, self._outgoing)
        self._outgoing = self._outgoing[sent:]
        self._count_unsent(-sent)
        if not self._outgoing and self._writing is not None and not self._writing.done():
            self._writing.set_result(None)

    def cancelled(self) -> None:
        """Nobody waits for the answer any more."""
        self._finish()
        if self._task is not None:
            # Not before its first step: what it is the rest of would never hear of it.
            self._calls.loop.call_soon(self._task.cancel)
            self._task = None  # it knows this call, and its end is an exception that knows both

    def stopped(self) -> None:
        """The time for a stop is over."""
        self._end("UNAVAILABLE", "the server stopped before the answer was computed")
        self.cancelled()

    # -- what methods call -------------------------------------------------------------------------------------------

    async def write(self, message: bytes) -> None:
        """See service.Call."""
        if self._over:
            raise asyncio.CancelledError
        before = b"" if self._headers_sent else frame(HEADERS, END_HEADERS, self._number, _HEADERS)
        self._headers_sent = True
        await self._send(message, before)

    def answer_waits(self, size: int) -> None:
        """See service.Call."""
        unsent = self._connection.unsent
        if size >= LARGE and not unsent.has_room(size):
            raise RequestError(Failure.TOO_MANY, unsent.message())
        self._count_unsent(size)

    def answer_goes(self, size: int) -> None:
        """See service.Call."""
        self._count_unsent(-size)

    def authorization(self) -> bytes | None:
        """See service.Call."""
        return self._headers.get(b"authorization")

    def certificate_name(self) -> str | None:
        """See service.Call."""
        return self._connection.certificate_name

    def seconds_left(self) -> float | None:
        """See service.Call."""
        return None if self._deadline is None else self._deadline - self._calls.loop.time()

    def client(self) -> str:
        """See service.Call."""
        return self._connection.client

    # -- private -----------------------------------------------------------------------------------------------------

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
                self._end("INVALID_ARGUMENT", "malformed grpc-timeout")
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
                sent = self._try_send(message, before, after)
                del message
                if not sent:
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
        connection = self._connection
        size = len(data)
        if size >= LARGE and not connection.unsent.has_room(size):
            raise RequestError(Failure.TOO_MANY, connection.unsent.message())
        if size > connection.send_window or size > self.send_window or not connection.writable:
            self._count_unsent(size)
        sent = connection.write_data(self._number, self, data, before, after)
        if self._unsent:
            self._count_unsent(-sent)
        self._outgoing = data[sent:]
        return sent == len(data)

    def _count_unsent(self, size: int) -> None:
        if self._over and size > 0:
            return  # it was computed for nobody
        size = max(size, -self._unsent)
        self._unsent += size
        self._connection.unsent.add(size)

    async def _writing_done(self) -> None:
        self._writing = self._calls.loop.create_future()
        try:
            await self._writing
        finally:
            self._writing = None

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

    def _malformed(self) -> None:
        self._over = True
        self._connection.close_stream(self._number, PROTOCOL_ERROR)
        self.cancelled()

    def _refuse_http(self, code: int) -> None:
        self._connection.write(frame(HEADERS, END_HEADERS | END_STREAM, self._number, status(code)))
        self._close()

    def _close(self) -> None:
        # A client that still sends its request is told to stop.
        self._finish()
        self._connection.close_stream(self._number, None if self.ended else NO_ERROR)

    def _finish(self) -> None:
        self._over = True
        self._outgoing = memoryview(b"")
        if self._unsent:
            self._count_unsent(-self._unsent)
        if self._held:
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
