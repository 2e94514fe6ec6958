# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The side of an HTTP connection that takes bodies in: counted, in turns when they are large, or past the parser."""

import asyncio

from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.bodies import Body, collect, joined
from edgeml_runtime.transports.http.answering import Answering
from edgeml_runtime.transports.http.messages import Answer, Request, error_answer
from edgeml_runtime.transports.http.shared import Shared
from edgeml_runtime.transports.turns import Turn
from edgeml_runtime.transports.unsent import close


class Intake(Answering):
    """Bodies until they are complete; ``connection.Connection`` parses what is around them."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._certificate_name: str | None = None
        self._parts: list[bytes] = []
        self._held = 0  # of what the listener holds
        self._size = 0
        self._length = 0  # of the body, 0 when it comes in chunks
        self._body_left = 0  # of a request that goes past the parser
        self._turn: Turn | None = None  # of a large body
        self._body: Body | None = None  # that is read right into its place
        self._receive_timer: asyncio.TimerHandle | None = None

    def _take_known(self, data: bytes) -> bool:
        """Take a request without the parser, if its head is known."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._shared.heads.get(data[:end])
        if known is None:
            return False
        left = known.body_bytes - (len(data) - end)
        if left < 0:  # more than one request
            return False
        request = Request(known.method, known.url, known.headers, self._client, self._certificate_name)
        request.answer = self._shared.application.admit(request)
        if request.answer is not None and left:
            return False
        if not self._hold(len(data) - end):
            self._drop(len(data) - end)
            return False
        self._cancel_receive_timer()  # of its head, which came in pieces
        if left == 0:
            request.body = data[end:]
            request.body_bytes = len(request.body)
            self._queue.append(request)
            self._answer_or_wait()
            return True
        self._request = request
        self._parts = [data[end:]]
        self._length = known.body_bytes
        self._body_left = left
        self._receive_timer = self._loop.call_later(self._limits.receive_seconds, self._receive_timeout)
        if left >= bodies.LARGE:
            self._await_turn()
        return True

    def _take_body(self, data: bytes) -> None:
        left = self._body_left = self._body_left - len(data)
        part = data[:left] if left < 0 else data
        collect(self._parts, part)
        if not self._hold(len(part)):
            self._refuse(error_answer(429, self._held_message()))
        elif left > 0:
            if left >= bodies.LARGE and self._turn is None:
                self._await_turn()
            return
        else:
            self._body_left = 0
            self.on_message_complete()
        self._answer_or_wait()
        if left < 0:
            self.data_received(data[left:])

    def _await_turn(self) -> None:
        """Read no more of a large body before its turn has come."""
        self._pause()
        self._turn = self._shared.turns.take(self._length, self._read_body)

    def _read_body(self) -> None:
        """Read what is missing of a body right into its place."""
        request = self._request
        if request is None:
            return
        body = self._body = self._shared.buffers.body(self._length, self._length - self._body_left, request.aligned_at)
        for part in self._parts:
            body.add(part)
        self._parts = []
        self._body_left = 0
        self._cancel_receive_timer()  # it was us who kept the client waiting
        self._receive_timer = self._loop.call_later(self._limits.receive_seconds, self._receive_timeout)
        self._transport.set_protocol(_BodyReader(self))
        self._reading = True
        self._transport.resume_reading()

    def room(self) -> memoryview:
        """Where more of a large body goes."""
        return self._body.room() if self._body is not None else memoryview(b"")

    def took(self, size: int) -> None:
        """So many bytes of a large body were read into its place."""
        body = self._body
        if body is None:
            return
        body.took(size)
        if not self._hold(size):
            self._refuse(error_answer(429, self._held_message()))
        elif body.missing:
            return
        else:
            self.on_message_complete()
        self._answer_or_wait()

    def _end_turn(self) -> None:
        """A large body is complete, or not wanted any more."""
        if self._body is not None:
            self._body = None
            if not self._transport.is_closing():
                # Pausing has the event loop take notice.
                self._transport.pause_reading()
                self._transport.set_protocol(self)
                if self._reading:
                    self._transport.resume_reading()
        if self._turn is not None:
            turn, self._turn = self._turn, None
            self._shared.turns.end(turn)

    def _hold(self, size: int) -> bool:
        """Count bytes of a body that are kept; false when this and other connections together keep too many."""
        self._held += size
        held = self._shared.held = self._shared.held + size
        return held <= self._limits.buffered_bytes or held == self._held

    def _drop(self, size: int) -> None:
        self._held -= size
        self._shared.held -= size

    def _go_on(self) -> None:
        """All that was parsed is answered: parse what came with it, then read again."""
        if self._queue or self._answering is not None or self._transport.is_closing():
            return
        data, self._unparsed = self._unparsed, b""
        if data:
            self.data_received(data)
        if self._queue or self._answering is not None or self._unparsed or self._transport.is_closing():
            return
        if self._turn is not None and self._body is None:
            return
        if self._ended:
            if not self.eof_received():
                close(self._transport, self._limits.receive_seconds)
        elif not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def on_message_complete(self) -> None:
        """The request is complete."""
        request = self._request
        if request is None:
            return
        self._request = None
        self._cancel_receive_timer()
        if request.answer is None:
            parts = self._parts
            if self._body is not None:
                request.body = self._body.content()
            elif parts:
                request.body = parts[0] if len(parts) == 1 else joined(parts, request.aligned_at)
                self._parts = []
            request.body_bytes = len(request.body)
            if self._turn is not None:
                self._end_turn()
            self._queue.append(request)

    def _refuse(self, answer: Answer) -> None:
        """Answer so after all that was asked before, then close: where the next request begins is not known."""
        self._deaf = self._unread = True
        self._unparsed = b""
        self._in_head = False
        self._cancel_receive_timer()
        request = self._request
        self._request = None
        self._drop(sum(map(len, self._parts)) + (self._body.received if self._body is not None else 0))
        self._parts = []
        self._body_left = 0
        self._end_turn()
        if request is not None and request.answer is not None:  # refused already; now its body turns out to be bad
            if self._answering is None and not self._queue:
                self._close()
            request.keep_alive = False
            return
        request = Request(b"", b"", {}, self._client, self._certificate_name)
        request.keep_alive = False
        request.answer = answer
        self._queue.append(request)

    def _cancel_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_timeout(self) -> None:
        self._receive_timer = None
        if not self._reading:  # it is us who keep the client waiting
            self._receive_timer = self._loop.call_later(self._limits.receive_seconds, self._receive_timeout)
            return
        message = f"the request was not complete within {self._limits.receive_seconds:g} s"
        self._refuse(error_answer(408, message))
        if self._answering is None and self._queue:
            self._answer_next()

    def _held_message(self) -> str:
        return f"bodies of {self._limits.buffered_bytes} bytes are under way, the most allowed; try again later"

    def _body_message(self) -> str:
        return f"the body is larger than {self._limits.body_bytes} bytes"


class _BodyReader(asyncio.BufferedProtocol):
    """Takes the place of a connection while the rest of a large body is read right into its place.

    Holds nothing of the body: the transport does not forget it before the next one.
    """

    def __init__(self, connection: Intake) -> None:
        self._connection = connection

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where to read to; nothing that follows the body has room."""
        return self._connection.room()

    def buffer_updated(self, size: int) -> None:
        """So much was read."""
        self._connection.took(size)

    def eof_received(self) -> bool | None:
        """See Connection."""
        return self._connection.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """See Connection."""
        self._connection.connection_lost(error)

    def pause_writing(self) -> None:
        """See Connection."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """See Connection."""
        self._connection.resume_writing()
