# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The side of an HTTP connection that answers: the queue of requests, the task that computes, and how to close.

Requests of a connection are answered one after the other, in their order. A request is answered
where its last byte is read: a task is made only for an answer that has to be waited for.
"""

import asyncio
import logging
import socket
from collections import deque

from edgeml_runtime.transports import unsent
from edgeml_runtime.transports.begun import rest_of
from edgeml_runtime.transports.http.messages import CONTINUE, Answer, Request, error_answer
from edgeml_runtime.transports.http.shared import Shared
from edgeml_runtime.transports.unsent import close

# How long a client may take to notice that its request was refused while it still sends it.
LINGER_SECONDS = 5.0
# How long a connection beyond the limit may take to send the request that is then refused.
SHED_SECONDS = 1.0
# After a client has ended its side: how often to look whether it is gone altogether.
PROBE_SECONDS = 0.1
_TCP_CLOSE = 7  # tcp_states.h

logger = logging.getLogger(__name__)


class Answering(asyncio.Protocol):
    """What is asked waits here until it is answered; ``intake.Intake`` puts it into the queue."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._loop = shared.loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._client = "unix"
        self._queue: deque[Request] = deque()
        self._answering: Request | None = None
        self._task: asyncio.Task[Answer] | None = None
        self._reading = True
        self._writable = True
        self._deaf = False  # whatever still comes is thrown away
        self._unread = False  # more may come of a request that was refused
        self._ended = False  # the client has ended its side
        self._in_head = False
        self._request: Request | None = None  # whose body is being received
        self._unparsed = b""  # what was sent behind requests that are being answered
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0
        #: Answers are sent one after the other, so that one alone can wait for the client.
        self._unsent = 0

    # -- what the event loop calls -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client takes its answer slowly."""
        self._writable = False
        self._watch_writing(None)

    def resume_writing(self) -> None:
        """The client has taken most of its answer."""
        self._writable = True
        self._forget_unsent()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._queue and self._answering is None:
            self._answer_next()

    # -- what intake does --------------------------------------------------------------------------------------------

    def _drop(self, size: int) -> None:
        """Bytes of a body are kept no more."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """All that was parsed is answered."""
        raise NotImplementedError

    # -- answering ---------------------------------------------------------------------------------------------------

    def _answer_or_wait(self) -> None:
        if self._answering is None and self._writable:
            self._answer_next()
        else:
            self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _answer_next(self) -> None:
        request = self._answering = self._queue.popleft()
        if request.answer is not None:
            self._respond(request, request.answer)
            return
        answering = self._shared.application.answer(request)
        try:
            waits_for = answering.send(None)
        except StopIteration as done:
            self._respond(request, done.value)
        except Exception:
            logger.exception("%s %s failed", request.method.decode(), request.url.decode(errors="replace"))
            self._respond(request, error_answer(500, "the server failed; its log says why"))
        else:
            self._task = self._loop.create_task(rest_of(answering, waits_for))
            self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Answer]) -> None:
        self._task = None
        request = self._answering
        if request is None or self._transport.is_closing():
            if not task.cancelled():
                task.exception()  # nobody is left to be told
            return
        if task.cancelled():
            self._respond(request, error_answer(503, "the server stopped before the answer was computed"))
        elif error := task.exception():
            logger.error("%s %s failed", request.method.decode(), request.url.decode(errors="replace"), exc_info=error)
            self._respond(request, error_answer(500, "the server failed; its log says why"))
        else:
            self._respond(request, task.result())

    def _respond(self, request: Request, answer: Answer) -> None:
        status, lines, body = answer
        now = self._last_answer = self._loop.time()
        if request.body_bytes:
            self._drop(request.body_bytes)
        last = not request.keep_alive or self._shared.draining
        length = len(body) if isinstance(body, bytes) else sum(map(len, body))
        if length >= unsent.LARGE and not self._shared.unsent.has_room(length):
            status, lines, body = error_answer(429, self._shared.unsent.message())
            length = len(body)
        head = b"%b%bcontent-length: %d\r\n%b\r\n" % (
            self._shared.status_line(status, now),
            lines,
            length,
            b"connection: close\r\n" if last else b"",
        )
        if request.method == b"HEAD":
            self._transport.write(head)
        elif isinstance(body, bytes):
            self._transport.write(head + body)
        else:
            self._transport.writelines([head, *body])
        if length >= unsent.LARGE and not self._writable:
            self._forget_unsent()
            self._unsent = length
            self._shared.unsent.add(length)
        self._answering = None
        if last or (self._ended and not self._queue and not self._unparsed):
            self._close()
        elif self._queue:
            # One at a time: requests of other connections come between those that were sent at once.
            if self._writable:
                self._loop.call_soon(self._answer_if_free)
        elif self._unparsed or not self._reading:
            self._loop.call_soon(self._go_on)

    def _forget_unsent(self) -> None:
        if self._unsent:
            self._shared.unsent.add(-self._unsent)
            self._unsent = 0

    def _answer_if_free(self) -> None:
        if self._queue and self._answering is None and self._writable:
            self._answer_next()

    def _watch_writing(self, before: int | None) -> None:
        left = self._transport.get_write_buffer_size()
        if before is not None and left >= before:
            self._transport.abort()
        else:
            self._write_timer = self._loop.call_later(self._limits.receive_seconds, self._watch_writing, left)

    # -- closing -----------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close once all is written, and so that the client can read it though it may still be sending."""
        self._deaf = True
        self._queue.clear()
        if (
            (self._unread or self._request is not None or not self._reading)
            and not self._ended
            and self._transport.can_write_eof()
        ):
            self._transport.write_eof()
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            seconds = self._limits.receive_seconds
            self._loop.call_later(min(LINGER_SECONDS, seconds), close, self._transport, seconds)
        else:
            close(self._transport, self._limits.receive_seconds)

    def _close_if_idle(self) -> None:
        left = self._last_answer + self._limits.idle_seconds - self._loop.time()
        if not self.is_idle:
            left = self._limits.idle_seconds
        if left > 0.001:
            self._idle_timer = self._loop.call_later(left, self._close_if_idle)
        else:
            close(self._transport, self._limits.receive_seconds)

    def _probe(self, first: bool) -> None:
        """Whether a client that has ended its side is gone: what is sent to it then comes back as a reset."""
        if self._transport.is_closing() or self._task is None:
            return
        if self._answering is not None and not self._answering.takes_interim:
            return
        if first:
            self._transport.write(CONTINUE)
        connected = self._transport.get_extra_info("socket")
        if (
            connected.family != socket.AF_UNIX
            and connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
        ):
            self._transport.abort()
        else:
            self._loop.call_later(PROBE_SECONDS, self._probe, False)

    def _shed(self) -> None:
        self._deaf = True
        if len(self._shared.shed) >= self._limits.connections:
            self._transport.abort()
            return
        self._shared.shed.add(self)
        self._idle_timer = self._loop.call_later(SHED_SECONDS, self._refuse_shed)

    def _refuse_shed(self) -> None:
        # Not before the request was read: a connection that is closed with unread data is reset, and the answer lost.
        self._shared.shed.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        request = Request(b"", b"", {}, self._client, None)
        request.keep_alive = False
        self._respond(request, error_answer(503, f"there are {self._limits.connections} connections, the most allowed"))

    @property
    def is_idle(self) -> bool:
        """Nothing has been asked that is not answered."""
        unanswered = self._answering or self._queue or self._in_head or self._request or self._unparsed
        return not unanswered

    def close_if_idle(self) -> None:
        """The time is over for clients that had nothing to ask."""
        if self.is_idle:
            close(self._transport, self._limits.receive_seconds)

    def give_up(self) -> None:
        """The time for a stop is over."""
        self._queue.clear()
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)
        else:
            close(self._transport, self._limits.receive_seconds)

    def abort(self) -> None:
        """Close at once, whatever is not yet sent."""
        self._transport.abort()
