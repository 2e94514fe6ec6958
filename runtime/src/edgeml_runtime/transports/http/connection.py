# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection: httptools parses, an application answers.

What it is made of: ``answering`` (queue, answers, closing), ``intake`` (bodies), and here what the event
loop and the parser call. One object, since each call between objects costs every request.
"""

import asyncio
import re

import httptools

from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.bodies import collect
from edgeml_runtime.transports.credentials import common_name
from edgeml_runtime.transports.http.answering import PROBE_SECONDS
from edgeml_runtime.transports.http.intake import Intake
from edgeml_runtime.transports.http.messages import CONTINUE, Answer, Request, error_answer
from edgeml_runtime.transports.http.shared import Shared

# Of requests that were sent at once, so much is parsed at once: a parsed request takes many times its bytes.
_PORTION = 4096
# Bytes of extensions of chunks and their sizes, beside those in proportion to the body.
_MOST_BESIDE_CHUNKS = 64 * 1024
# RFC 3986, section 3.2: a name, an address or an IPv6 address in brackets, and a port.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:[0-9]*)?")


class _Refused(Exception):
    """Raised in a callback of the parser to end parsing: nothing after this point is a request."""


class Connection(Intake):
    """A connection in one of these states: idle, receiving a request, answering, closing."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._parser = _parser_for(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0  # in complete headers
        self._head_received = 0  # in reads that held nothing else
        self._upgraded = (b"", b"", b"")  # method, URL and version of a request that would change the protocol
        self._is_chunked = False
        self._chunked_received = 0  # bytes of a body in chunks, with all that is beside its content
        self._refusal: Answer | None = None  # of a request that a callback of the parser refuses
        self._begins_in: bytes | None = None  # what is being parsed, if it began with a request

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
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing here can be upgraded to: the field is ignored (RFC 9110, section 7.8).
            # The parser takes what follows for another protocol, so it gets the head again without the field.
            self._parser = _parser_for(self)
            self._unparsed = self._head_without_upgrade() + data[upgrade.args[0] :] + self._unparsed
            self._pause()
        except httptools.HttpParserError as error:
            refusal, self._refusal = self._refusal, None
            if refusal is not None:
                self._refuse(refusal)
            elif error.__context__ is not None:
                raise error.__context__ from None
            else:
                self._refuse(error_answer(400, f"no HTTP request: {error}"))
        else:
            if self._in_head and (in_head or self._begins_in is data):  # all of the data is head
                self._head_received += len(data)
                if self._head_received > self._limits.header_bytes:
                    self._refuse(self._head_too_large())
            if self._request is not None and self._is_chunked:
                self._chunked_received += len(data)
                # The smallest chunk has 6 bytes for one of the body; all else are extensions.
                if self._chunked_received > 8 * self._size + _MOST_BESIDE_CHUNKS:
                    self._refuse(error_answer(413, "the chunks of the body have too much beside their content"))
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
        if (self._answering is None and not self._queue) or not self._transport.can_write_eof():
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
        self._forget_unsent()
        shared.held -= self._held
        self._held = 0
        self._deaf = True
        self._unparsed = b""
        self._queue.clear()
        if self._task is not None:
            # Not before its first step: what it is the rest of would never hear of it.
            self._loop.call_soon(self._task.cancel)
        self._parser = None  # type: ignore[assignment]  # it refers to this object

    def _pass_by_parser(self) -> bool:
        """Let what is missing of a body go past the parser, if it is much."""
        request = self._request
        if request is None or request.answer is not None or self._length - self._size < bodies.LARGE:
            return False
        self._body_left = self._length - self._size
        self._parser = _parser_for(self)  # the one that waits for this body is of no use any more
        return True

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
        if len(self._url) > self._limits.header_bytes:
            raise self._refusing(*self._head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._limits.header_bytes:
            raise self._refusing(*self._head_too_large())
        if not self._in_head:  # a trailer
            return
        name = name.lower()
        value = value.rstrip(b" \t")  # the parser strips what is before the value alone
        headers = self._headers
        if name == b"host" and name in headers:
            raise self._refusing(*error_answer(400, "there is more than one header Host"))
        headers[name] = value if name not in headers else headers[name] + b", " + value

    def on_headers_complete(self) -> None:
        """Let the application judge, so that no body is received in vain."""
        self._in_head = False
        headers = self._headers
        parser = self._parser
        if self._head_bytes + len(self._url) > self._limits.header_bytes:
            raise self._refusing(*self._head_too_large())
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise self._refusing(*error_answer(505, f"version {version} of HTTP is not supported, 1.0 and 1.1 are"))
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            # Any doubt about where the body ends would let requests be smuggled (RFC 9112, sections 6.1 and 11.2).
            if version == "1.0":
                raise self._refusing(*error_answer(400, "HTTP/1.0 has no header Transfer-Encoding"))
            if coding.lower() != b"chunked":
                raise self._refusing(*error_answer(501, "of transfer codings, chunked alone is supported"))
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                raise self._refusing(*error_answer(405, "method CONNECT is not allowed"))
            self._upgraded = (parser.get_method(), self._url, version.encode())
            return
        request = Request(parser.get_method(), self._url, headers, self._client, self._certificate_name)
        request.keep_alive = parser.should_keep_alive()
        request.takes_interim = version == "1.1"
        if b"host" not in headers or b"connection" in headers:
            if not request.takes_interim:
                request.keep_alive = False
            elif b"host" not in headers:
                raise self._refusing(*error_answer(400, "header Host is missing"))
        if not _HOST.fullmatch(headers.get(b"host", b"")):
            raise self._refusing(*error_answer(400, "header Host is not a host with perhaps a port"))
        self._request = request
        begins_in, self._begins_in = self._begins_in, None
        refusal = self._shared.application.admit(request)
        length = int(headers.get(b"content-length", 0))  # one number: the parser has checked it
        if refusal is None and length > self._limits.body_bytes:
            raise self._refusing(*error_answer(413, self._body_message()))
        self._length = length
        self._is_chunked = coding is not None
        self._chunked_received = 0
        expects = b"expect" in headers and headers[b"expect"].lower() == b"100-continue"
        if refusal is not None:
            request.answer = refusal
            if expects:  # whether the body comes all the same is up to the client
                request.keep_alive = False
            self._queue.append(request)
        elif expects and self._answering is None and request.takes_interim:
            self._transport.write(CONTINUE)
        is_ordinary = refusal is None and request.keep_alive and not expects
        if begins_in is not None and is_ordinary and coding is None:
            self._shared.remember(begins_in, request, length)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self._size += len(part)
        if self._request is None or self._request.answer is not None:
            return
        if self._size > self._limits.body_bytes:
            raise self._refusing(*error_answer(413, self._body_message()))
        collect(self._parts, part)
        if not self._hold(len(part)):
            raise self._refusing(*error_answer(429, self._held_message()))

    def _head_without_upgrade(self) -> bytes:
        headers = self._headers
        options = headers.pop(b"connection", b"").split(b",")
        del headers[b"upgrade"]
        left = [option for option in options if option.strip().lower() not in (b"upgrade", b"http2-settings")]
        lines = [b"%b: %b\r\n" % header for header in headers.items()]
        if left:
            lines.append(b"connection: %b\r\n" % b",".join(left))
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*self._upgraded, b"".join(lines))

    def _refusing(self, *answer: *Answer) -> _Refused:
        self._refusal = answer
        return _Refused()

    def _head_too_large(self) -> Answer:
        most = self._limits.header_bytes
        if len(self._url) > most - 64 and not self._head_bytes:
            return error_answer(414, f"the URL is larger than {most} bytes")
        return error_answer(431, f"the header is larger than {most} bytes")


def _parser_for(connection: Connection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    # What follows a request that says "connection: close" is to be ignored, not an error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
