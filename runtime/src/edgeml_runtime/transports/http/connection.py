# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection: httptools parses, an application answers.

Requests of a connection are answered one after the other, in their order. A request is answered
where its last byte is read: a task is made only for an answer that has to be waited for.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

import httptools

from edgeml_runtime.config import Limits
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.begun import rest_of
from edgeml_runtime.transports.bodies import Body, Buffers, collect, joined
from edgeml_runtime.transports.credentials import common_name
from edgeml_runtime.transports.http.messages import Answer, Application, Request, error_answer
from edgeml_runtime.transports.turns import Turn, Turns

# How long a client may take to notice that its request was refused while it still sends it.
LINGER_SECONDS = 5.0
# How long a connection beyond the limit may take to send the request that is then refused.
SHED_SECONDS = 1.0
# After a client has ended its side: how often to look whether it is gone altogether.
PROBE_SECONDS = 0.1
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Heads that are remembered, and bytes of one.
_MOST_HEADS = 512
_LONGEST_HEAD = 2048
_TCP_CLOSE = 7  # tcp_states.h
# Of requests that were sent at once, so much is parsed at once: a parsed request takes many times its bytes.
_PORTION = 4096

logger = logging.getLogger(__name__)


class Shared:
    """What the connections of one listener share."""

    def __init__(self, application: Application, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.connections: set[Connection] = set()
        self.shed: set[Connection] = set()
        self.draining = False
        #: Bytes of bodies that are being received or whose requests are not yet answered.
        self.held = 0
        self.buffers = Buffers(loop)
        self.turns = Turns(limits.receiving_bytes, loop)
        #: Set while there is no connection.
        self.empty = asyncio.Event()
        self.empty.set()
        #: Heads of requests with a body of known length, since most clients send the same head each
        #: time: parsing it anew costs more than all else of HTTP.
        self.heads: dict[bytes, _Head] = {}
        self._status_lines: dict[int, bytes] = {}
        self._status_lines_until = 0.0

    def remember(self, data: bytes, request: Request, body_bytes: int) -> None:
        """Remember the head that ``data`` begins with, where there can be no doubt about its end."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        if end < 4 or end > _LONGEST_HEAD or not head.startswith(request.method):
            return
        if head.count(b"\n") != head.count(b"\r\n"):
            return
        if len(self.heads) >= _MOST_HEADS:
            self.heads.clear()
        self.heads[head] = _Head(request.method, request.url, request.headers, body_bytes)

    def status_line(self, status: int, now: float) -> bytes:
        """Status line and date."""
        if now >= self._status_lines_until:
            self._status_lines.clear()
            self._status_lines_until = now + 1
        line = self._status_lines.get(status)
        if line is None:
            phrase = HTTPStatus(status).phrase
            line = f"HTTP/1.1 {status} {phrase}\r\ndate: {formatdate(usegmt=True)}\r\n".encode()
            self._status_lines[status] = line
        return line


class _Head(NamedTuple):
    """A request's head that the parser has read: the same bytes mean the same again."""

    method: bytes
    url: bytes
    headers: Mapping[bytes, bytes]
    body_bytes: int


class _Refused(Exception):
    """Raised in a callback of the parser to end parsing: nothing after this point is a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(asyncio.Protocol):
    """A connection in one of these states: idle, receiving a request, answering, closing."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._loop = shared.loop
        self._parser = _parser_for(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._client = "unix"
        self._certificate_name: str | None = None
        # Receiving.
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0  # in complete headers
        self._head_received = 0  # in reads that held nothing else
        self._in_head = False
        self._request: Request | None = None  # whose body is being received
        self._parts: list[bytes] = []
        self._held = 0  # of what the listener holds
        self._size = 0
        self._length = 0  # of the body, 0 when it comes in chunks
        self._unparsed = b""  # what was sent behind requests that are being answered
        self._body_left = 0  # of a request that goes past the parser
        self._turn: Turn | None = None  # of a large body
        self._body: Body | None = None  # that is read right into its place
        self._begins_in: bytes | None = None  # what is being parsed, if it began with a request
        self._deaf = False  # whatever still comes is thrown away
        self._unread = False  # more may come of a request that was refused
        self._ended = False  # the client has ended its side
        self._receive_timer: asyncio.TimerHandle | None = None
        # Answering.
        self._queue: deque[Request] = deque()
        self._answering: Request | None = None
        self._task: asyncio.Task[Answer] | None = None
        self._reading = True
        self._writable = True
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._last_answer = 0.0

    # -- what the event loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or shed it when there are too many."""
        self._transport = transport
        shared = self._shared
        if len(shared.connections) >= self._limits.connections:
            self._shed()
            return
        shared.connections.add(self)
        shared.empty.clear()
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        self._certificate_name = common_name(transport.get_extra_info("peercert"))
        self._last_answer = self._loop.time()
        self._idle_timer = self._loop.call_later(self._limits.idle_seconds, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        """Parse, and answer what is complete."""
        if self._deaf:
            if self in self._shared.shed:
                self._refuse_shed()
            return
        if self._unparsed:  # it was on its way when reading was paused
            self._unparsed += data
            return
        if self._body_left:
            self._take_body(data)
            return
        in_head = self._in_head
        begins = not in_head and self._request is None
        if begins and self._take_known(data):
            return
        portion = _PORTION if self._request is None else max(_PORTION, self._length - self._size)
        if len(data) > portion:
            self._unparsed = data[portion:]
            self._pause()
            data = data[:portion]
        if begins:
            self._begins_in = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request was taken as one that closes the connection
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _Refused):
                self._refuse(error_answer(cause.status, str(cause)))
            elif cause is not None:
                raise cause from None
            else:
                self._refuse(error_answer(400, f"no HTTP request: {error}"))
        else:
            if self._in_head and (in_head or self._begins_in is data):  # all of the data is head
                self._head_received += len(data)
                if self._head_received > self._limits.header_bytes:
                    self._refuse(error_answer(431, self._header_message()))
            if (self._in_head or self._request is not None) and self._receive_timer is None:
                self._receive_timer = self._loop.call_later(self._limits.receive_seconds, self._receive_timeout)
        is_large = self._pass_by_parser()
        if self._queue:
            self._answer_or_wait()
        elif self._unparsed:
            self._loop.call_soon(self._go_on)
        elif is_large:
            self._await_turn()

    def eof_received(self) -> bool:
        """The client has sent all it will: answer what it has asked, then close."""
        self._ended = True
        if self._unparsed:
            return True
        if self._in_head or (self._request is not None and self._request.answer is None):
            self._refuse(error_answer(400, "the connection ended before the request was complete"))
        if self._answering is None and self._queue:
            self._answer_next()
        if self._answering is None or not self._transport.can_write_eof():
            return False
        self._loop.call_later(PROBE_SECONDS, self._probe, True)
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget everything; end a run that nobody waits for."""
        shared = self._shared
        shared.connections.discard(self)
        shared.shed.discard(self)
        if not shared.connections:
            shared.empty.set()
        for timer in (self._receive_timer, self._write_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._end_turn()
        shared.held -= self._held
        self._held = 0
        self._deaf = True
        self._unparsed = b""
        self._queue.clear()
        if self._task is not None:
            # Not before its first step: what it is the rest of would never hear of it.
            self._loop.call_soon(self._task.cancel)
        self._parser = None  # type: ignore[assignment]  # it refers to this object

    def pause_writing(self) -> None:
        """The client takes its answer slowly."""
        self._writable = False
        self._watch_writing(None)

    def resume_writing(self) -> None:
        """The client has taken most of its answer."""
        self._writable = True
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._queue and self._answering is None:
            self._answer_next()

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

    def _pass_by_parser(self) -> bool:
        """Let what is missing of a body go past the parser, if it is much."""
        request = self._request
        if request is None or request.answer is not None or self._length - self._size < bodies.LARGE:
            return False
        self._body_left = self._length - self._size
        self._parser = _parser_for(self)  # the one that waits for this body is of no use any more
        return True

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
        if self._receive_timer is not None:  # it was us who kept the client waiting
            self._receive_timer.cancel()
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

    def _answer_or_wait(self) -> None:
        if self._answering is None and self._writable:
            self._answer_next()
        else:
            self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

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
                self._transport.close()
        elif not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _watch_writing(self, before: int | None) -> None:
        left = self._transport.get_write_buffer_size()
        if before is not None and left >= before:
            self._transport.abort()
        else:
            self._write_timer = self._loop.call_later(self._limits.receive_seconds, self._watch_writing, left)

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = {}
        self._head_bytes = self._head_received = self._size = self._length = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A part of the URL."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._limits.header_bytes:
            raise _Refused(431, self._header_message())
        if not self._in_head:  # a trailer
            return
        name = name.lower()
        headers = self._headers
        headers[name] = value if name not in headers else headers[name] + b", " + value

    def on_headers_complete(self) -> None:
        """Let the application judge, so that no body is received in vain."""
        self._in_head = False
        headers = self._headers
        parser = self._parser
        if self._head_bytes + len(self._url) > self._limits.header_bytes:
            raise _Refused(431, self._header_message())
        request = Request(parser.get_method(), self._url, headers, self._client, self._certificate_name)
        request.keep_alive = parser.should_keep_alive()
        if b"host" not in headers or b"connection" in headers:
            if parser.get_http_version() != "1.1":
                request.keep_alive = False
            elif b"host" not in headers:
                raise _Refused(400, "header Host is missing")
        if parser.should_upgrade():
            request.keep_alive = False
            if b"content-length" in headers or b"transfer-encoding" in headers:
                raise _Refused(400, "header Upgrade with a body is not supported")
        self._request = request
        begins_in, self._begins_in = self._begins_in, None
        refusal = self._shared.application.admit(request)
        length = int(headers.get(b"content-length", 0))  # one number: the parser has checked it
        if refusal is None and length > self._limits.body_bytes:
            raise _Refused(413, self._body_message())
        self._length = length
        expects = b"expect" in headers and headers[b"expect"].lower() == b"100-continue"
        if refusal is not None:
            request.answer = refusal
            if expects:  # whether the body comes all the same is up to the client
                request.keep_alive = False
            self._queue.append(request)
        elif expects and self._answering is None:
            self._transport.write(_CONTINUE)
        is_ordinary = refusal is None and request.keep_alive and not expects
        if begins_in is not None and is_ordinary and b"transfer-encoding" not in headers:
            self._shared.remember(begins_in, request, length)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self._size += len(part)
        if self._request is None or self._request.answer is not None:
            return
        if self._size > self._limits.body_bytes:
            raise _Refused(413, self._body_message())
        collect(self._parts, part)
        if not self._hold(len(part)):
            raise _Refused(429, self._held_message())

    def on_message_complete(self) -> None:
        """The request is complete."""
        request = self._request
        if request is None:
            return
        self._request = None
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None
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

    # -- answering ---------------------------------------------------------------------------------------------------

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
        self._answering = None
        if last or (self._ended and not self._queue and not self._unparsed):
            self._close()
        elif self._queue:
            # One at a time: requests of other connections come between those that were sent at once.
            if self._writable:
                self._loop.call_soon(self._answer_if_free)
        elif self._unparsed or not self._reading:
            self._loop.call_soon(self._go_on)

    def _answer_if_free(self) -> None:
        if self._queue and self._answering is None and self._writable:
            self._answer_next()

    # -- refusing and closing ----------------------------------------------------------------------------------------

    def _refuse(self, answer: Answer) -> None:
        """Answer so after all that was asked before, then close: where the next request begins is not known."""
        self._deaf = self._unread = True
        self._unparsed = b""
        self._in_head = False
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None
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
            self._loop.call_later(min(LINGER_SECONDS, self._limits.receive_seconds), self._transport.close)
        else:
            self._transport.close()

    def _receive_timeout(self) -> None:
        self._receive_timer = None
        if not self._reading:  # it is us who keep the client waiting
            self._receive_timer = self._loop.call_later(self._limits.receive_seconds, self._receive_timeout)
            return
        message = f"the request was not complete within {self._limits.receive_seconds:g} s"
        self._refuse(error_answer(408, message))
        if self._answering is None and self._queue:
            self._answer_next()

    def _close_if_idle(self) -> None:
        left = self._last_answer + self._limits.idle_seconds - self._loop.time()
        if not self.is_idle:
            left = self._limits.idle_seconds
        if left > 0.001:
            self._idle_timer = self._loop.call_later(left, self._close_if_idle)
        else:
            self._transport.close()

    def _probe(self, first: bool) -> None:
        """Whether a client that has ended its side is gone: what is sent to it then comes back as a reset."""
        if self._transport.is_closing() or self._task is None:
            return
        if first:
            self._transport.write(_CONTINUE)
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
            self._transport.close()

    def give_up(self) -> None:
        """The time for a stop is over."""
        self._queue.clear()
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is not yet sent."""
        self._transport.abort()

    def _header_message(self) -> str:
        return f"the header is larger than {self._limits.header_bytes} bytes"

    def _held_message(self) -> str:
        return f"bodies of {self._limits.buffered_bytes} bytes are under way, the most allowed; try again later"

    def _body_message(self) -> str:
        return f"the body is larger than {self._limits.body_bytes} bytes"


class _BodyReader(asyncio.BufferedProtocol):
    """Takes the place of a connection while the rest of a large body is read right into its place.

    Holds nothing of the body: the transport does not forget it before the next one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where to read to; nothing that follows the body has room."""
        return self._connection.room()

    def buffer_updated(self, size: int) -> None:
        """So much was read."""
        self._connection.took(size)

    def eof_received(self) -> bool:
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


def _parser_for(connection: Connection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    # What follows a request that says "connection: close" is to be ignored, not an error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
