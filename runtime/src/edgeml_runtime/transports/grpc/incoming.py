# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The receiving side of a gRPC call: the stream's data cut into messages (see "gRPC over HTTP2" of gRPC)."""

import asyncio
from collections import deque
from collections.abc import Mapping

from edgeml_runtime.codecs.compression import DECOMPRESSED_HERE, decompress
from edgeml_runtime.codecs.protobuf import raw_contents_at
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.bodies import Body, collect
from edgeml_runtime.transports.grpc.calls import Calls
from edgeml_runtime.transports.grpc.windows import Windows

PREFIX_BYTES = 5
ACCEPTED_CODINGS = ("identity", "deflate", "gzip")


class Incoming:
    """Messages of a call as they come in; ``call.Call`` answers them."""

    __slots__ = (
        "_announced",
        "_begun",
        "_body",
        "_calls",
        "_connection",
        "_failed",
        "_headers",
        "_held",
        "_messages",
        "_missing",
        "_number",
        "_over",
        "_parts",
        "_prefix",
        "_waiting",
        "ended",
        "receive_window",
    )

    def __init__(self, calls: Calls, connection: Windows, number: int, headers: Mapping[bytes, bytes]) -> None:
        self._calls = calls
        self._connection = connection
        self._number = number
        self._headers = headers
        self.receive_window = 0
        self._begun = False
        self._over = False  # the status was sent, or nobody waits for it
        self._prefix = b""
        self._missing = -1  # bytes of the message, -1 before its prefix is complete
        self._parts: list[bytes] = []
        self._body: Body | None = None  # of a large message, instead of parts
        #: As received; a compressed one, which may be much larger afterwards, is decompressed when it is taken.
        self._messages: deque[tuple[bool, bytes | memoryview]] = deque()
        length = headers.get(b"content-length")
        #: Bytes of the body that are still to come by what the client announced; -1 when it did not.
        self._announced = int(length) if length is not None and length.isdigit() and len(length) < 18 else -1
        self._held = 0  # bytes counted in calls.buffered
        self.ended = False
        self._failed: tuple[Failure, str] | None = None  # why no more is received
        self._waiting: asyncio.Future[None] | None = None

    # -- what the connection calls -----------------------------------------------------------------------------------

    def data(self, data: bytes | memoryview, ended: bool) -> None:
        """Cut the body into messages."""
        if self._over:
            return
        self.ended = ended
        if self._announced >= 0:
            self._announced -= len(data)
            if self._announced < 0 or (ended and self._announced):
                self._malformed()
                return
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

    # -- what methods call -------------------------------------------------------------------------------------------

    async def receive(self) -> bytes | memoryview:
        """See service.Call."""
        if not self._messages and not self.ended and self._failed is None:
            seconds = self._calls.limits.receive_seconds
            timer = self._calls.loop.call_later(seconds, self._receive_timeout, seconds)
            try:
                while not self._messages and not self.ended and self._failed is None:
                    await self._more()
            finally:
                timer.cancel()
        message = self._plain()
        if message is None:
            message = await self._take()
            if message is not None:
                self.request_waits(len(message))  # decompressed, it may be much larger
                if self._failed is not None:
                    raise RequestError(*self._failed)
        if message is None:
            raise RequestError(Failure.UNIMPLEMENTED, "the call brought no complete request; it takes one")
        if self._messages:
            raise RequestError(Failure.UNIMPLEMENTED, "the call brought more than one request; it takes one")
        return message

    async def read(self) -> bytes | memoryview | None:
        """See service.Call."""
        begun: float | None = None  # when a part of the message was there
        timeout: float | None = None
        seconds = self._calls.limits.receive_seconds
        while not self._messages and not self.ended and self._failed is None:
            if self._calls.draining.done():
                raise RequestError(Failure.UNAVAILABLE, "the server is stopping")
            if self._prefix:
                now = self._calls.loop.time()
                begun = begun or now
                timeout = max(0.0, begun + seconds - now)
            waits_for = (self._more(), self._calls.draining)
            done, _ = await asyncio.wait(waits_for, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._failed = _too_slow(seconds)
        size = len(self._messages[0][1]) + PREFIX_BYTES if self._messages else 0
        message = await self._take()
        if message is not None:
            self.request_goes(size)  # the call may have ended while the message was decompressed
            self._connection.more_window(self._number, self, size)
        elif self._prefix:
            raise invalid("the last request is cut off")
        return message

    def request_waits(self, size: int) -> None:
        """See service.Call."""
        if not self._over:
            self._hold(size)

    def request_goes(self, size: int) -> None:
        """See service.Call."""
        self._release(min(size, self._held))  # nothing is held of a call that is over

    # -- private -----------------------------------------------------------------------------------------------------

    def _malformed(self) -> None:
        """The body is not as long as was announced (RFC 9113, section 8.1.1)."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Begin to answer."""
        raise NotImplementedError

    def _hold(self, size: int) -> None:
        calls = self._calls
        self._held += size
        calls.buffered += size
        if calls.buffered > max(calls.limits.buffered_bytes, calls.limits.body_bytes + PREFIX_BYTES):
            message = f"requests of {calls.buffered} bytes are being received; try again later"
            self._failed = (Failure.TOO_MANY, message)

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

    async def _decompressed(self, message: bytes | memoryview) -> bytes:
        coding = self._headers.get(b"grpc-encoding", b"identity").decode("latin-1")
        if coding not in ACCEPTED_CODINGS:
            names = ", ".join(ACCEPTED_CODINGS)
            raise RequestError(Failure.UNIMPLEMENTED, f"grpc-encoding '{coding[:100]}' is not supported; {names} are")
        most = self._calls.limits.body_bytes
        if len(message) <= DECOMPRESSED_HERE:
            return decompress(coding, message, most)
        return await self._calls.elsewhere(decompress, coding, message, most)

    def _plain(self) -> bytes | memoryview | None:
        """The next message, if it is there and not compressed: the usual case, without a coroutine."""
        if not self._messages or self._messages[0][0]:
            return None
        return self._messages.popleft()[1]

    async def _take(self) -> bytes | memoryview | None:
        if (message := self._plain()) is not None:
            return message
        if self._messages:
            return await self._decompressed(self._messages.popleft()[1])
        if self._failed is not None:
            raise RequestError(*self._failed)
        return None

    def _more(self) -> "asyncio.Future[None]":
        self._waiting = self._calls.loop.create_future()
        return self._waiting

    def _receive_timeout(self, seconds: float) -> None:
        self._failed = _too_slow(seconds)
        self.ready()


def _too_large(limits: Limits) -> tuple[Failure, str]:
    return Failure.TOO_LARGE, f"the message is larger than {limits.body_bytes} bytes"


def _too_slow(seconds: float) -> tuple[Failure, str]:
    return Failure.DEADLINE, f"the request was not complete within {seconds:g} s"
