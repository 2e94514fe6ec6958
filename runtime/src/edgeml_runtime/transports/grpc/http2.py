# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 (RFC 9113) as far as a server of calls needs it: frames, streams, flow control, and how to leave.

Header blocks are read by the library hpack. Those that are written use no compression state, so
that they can be made once and for all.
"""

import asyncio
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from hpack import Decoder, HPACKError

from edgeml_runtime.config import Limits
from edgeml_runtime.transports.credentials import common_name

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
WITH_PRIORITY = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x4, 0x5
_LARGEST_WINDOW = 2**31 - 1
_LARGEST_STREAM = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_MUCH = 1024  # bytes of data of a frame
_SMALLEST_MAX_FRAME = 16_384
_LARGEST_MAX_FRAME = 2**24 - 1
_HEAD = struct.Struct(">HBBBL")

#: Bytes that a client may send on a connection before it hears that they have been read.
CONNECTION_WINDOW = 2**24

#: Frames that carry no request until the client is sent away; what is answered and time itself earn more of them.
_PATIENCE = 2000
_EARNED = 20
_EARNED_PER_SECOND = 10

# Header blocks that changed nothing in the decoder mean the same when they come again.
_REMEMBERED_BLOCKS = 64
_REMEMBERED_BYTES = 1024

# How long a client may take to close after it was asked to.
_LINGER_SECONDS = 2.0
# How long to wait for the answer to the ping that follows the first GOAWAY when the server stops.
_PING_SECONDS = 1.0
# How long a silent client may take to answer a ping.
_DEAD_SECONDS = 20.0
_DRAIN_PING = b"draining"
_ALIVE_PING = b"alive?  "

logger = logging.getLogger(__name__)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header as a literal that is in no table (RFC 7541, section 6.2.2)."""
    return b"\0" + _integer(len(name)) + name + _integer(len(value)) + value


def status(code: int) -> bytes:
    """The pseudo-header ``:status``; 200 has a place in the static table."""
    return b"\x88" if code == 200 else header(b":status", b"%d" % code)


def _integer(value: int) -> bytes:
    if value < 0x7F:
        return bytes((value,))
    encoded = bytearray((0x7F,))
    value -= 0x7F
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Stream(Protocol):
    """What a connection tells the one who handles a stream."""

    #: Bytes that may be sent; the connection keeps it.
    send_window: int
    #: Bytes that may still be received; the connection keeps it.
    receive_window: int

    def data(self, data: bytes | memoryview, ended: bool) -> None:
        """More of the request's body, to be copied; ``ended`` when it was the last of it."""

    def ready(self) -> None:
        """What came together was handed over: act on it."""

    def pump(self) -> None:
        """More can be sent now."""

    def cancelled(self) -> None:
        """The client, or its connection, is gone."""

    def stopped(self) -> None:
        """The server ends now: tell the client, if it still waits."""


Open = Callable[["Connection", int, Mapping[bytes, bytes]], Stream]


class Shared:
    """What the connections of one listener share."""

    def __init__(self, open_stream: Open, stream_window: int, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.open_stream = open_stream
        self.stream_window = stream_window
        self.limits = limits
        self.loop = loop
        self.connections: set[Connection] = set()
        self.draining = False
        #: Set while there is no connection.
        self.empty = asyncio.Event()
        self.empty.set()
        settings = {
            0x3: limits.connections,  # streams at once
            _INITIAL_WINDOW_SIZE: stream_window,
            0x6: limits.header_bytes,
        }
        payload = b"".join(struct.pack(">HL", key, value) for key, value in settings.items())
        more = struct.pack(">L", CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self.greeting = frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, more)


class _Violation(Exception):
    """The client breaks the protocol; the connection ends."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._loop = shared.loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.client = "unix"
        self.certificate_name: str | None = None
        self.streams: dict[int, Stream] = {}
        self._rest = bytearray()  # of a frame that is not complete
        self._greeted = False
        self._deaf = False
        self._decoder = Decoder(max_header_list_size=shared.limits.header_bytes)
        self._blocks: dict[bytes, dict[bytes, bytes]] = {}
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, what came so far
        self._touched: list[Stream] = []
        self._highest = 0  # stream seen
        self._last = _LARGEST_STREAM  # stream that will be answered
        self._patience = _PATIENCE
        self._patience_time = shared.loop.time()
        self._received = 0  # bytes of data that the client has not heard to be read
        self._receive_window = CONNECTION_WINDOW
        self.send_window = _DEFAULT_WINDOW
        self._first_window = _DEFAULT_WINDOW  # of a new stream
        self.max_frame = _SMALLEST_MAX_FRAME
        self._out: list[bytes] | None = None  # while what was received is being handled
        self.writable = True
        self._blocked: set[Stream] = set()  # have something to send and may not
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last_active = 0.0
        self._last_received = 0.0

    # -- what the event loop calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, unless there are too many."""
        shared = self._shared
        self._transport = transport
        if len(shared.connections) >= self._limits.connections:
            self._deaf = True
            transport.abort()
            return
        shared.connections.add(self)
        shared.empty.clear()
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        self.certificate_name = common_name(transport.get_extra_info("peercert"))
        transport.write(shared.greeting)
        self._last_active = self._loop.time()
        self._timer = self._loop.call_later(self._limits.receive_seconds, transport.abort)
        if shared.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        """Handle all frames that are complete, then send at once what came of it."""
        if self._deaf:
            return
        self._last_received = self._loop.time()
        self._out = []
        try:
            if not self._greeted:
                data = self._without_preface(data)
            position = self._complete_frame(data) if self._rest else 0
            end = len(data)
            while end - position >= _HEAD.size:
                high, low, kind, flags, stream = _HEAD.unpack_from(data, position)
                following = position + _HEAD.size + _checked(high << 8 | low)
                if following > end:
                    break
                position += _HEAD.size
                # Much data is copied once, to its place.
                source = memoryview(data) if kind == DATA and following - position > _MUCH else data
                self._frame(kind, flags, stream & _LARGEST_STREAM, source[position:following])
                position = following
            if position < end:
                self._rest += data[position:]
            touched, self._touched = self._touched, []
            for touched_stream in touched:
                touched_stream.ready()
            if self._received > CONNECTION_WINDOW // 2:
                self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self._received)))
                self._receive_window += self._received
                self._received = 0
        except _Violation as violation:
            self._fail(violation)
        finally:
            out = self._out
            self._out = None
            if out and not self._transport.is_closing():
                self._transport.write(b"".join(out) if len(out) > 1 else out[0])

    def _without_preface(self, data: bytes) -> bytes:
        """What follows the preface, which may come in pieces."""
        self._rest += data
        if self._rest[: len(PREFACE)] != PREFACE[: len(self._rest)]:
            raise _Violation(PROTOCOL_ERROR, "no HTTP/2")
        if len(self._rest) < len(PREFACE):
            return b""
        self._greeted = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.idle_seconds, self._check_idle)
        data = bytes(self._rest[len(PREFACE) :])
        self._rest.clear()
        return data

    def _complete_frame(self, data: bytes) -> int:
        """Complete the frame that began in an earlier read; where in ``data`` the next one begins."""
        rest = self._rest
        position = 0
        if not self._greeted:
            return len(data)
        if len(rest) < _HEAD.size:
            position = _HEAD.size - len(rest)
            rest += data[:position]
            if len(rest) < _HEAD.size:
                return len(data)
        high, low, kind, flags, stream = _HEAD.unpack_from(rest)
        missing = _HEAD.size + _checked(high << 8 | low) - len(rest)
        rest += data[position : position + missing]
        position += missing
        if position > len(data):
            return len(data)
        self._rest = bytearray()
        self._frame(kind, flags, stream & _LARGEST_STREAM, bytes(rest[_HEAD.size :]))
        return position

    def eof_received(self) -> bool:
        """The client has sent all it will; without it there are no windows to answer into."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget everything; end runs that nobody waits for."""
        self._deaf = True
        shared = self._shared
        shared.connections.discard(self)
        if not shared.connections:
            shared.empty.set()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        streams = list(self.streams.values())
        self.streams.clear()
        self._blocked.clear()
        for stream in streams:
            stream.cancelled()

    def pause_writing(self) -> None:
        """The client takes its answers slowly."""
        self.writable = False
        self._transport.pause_reading()  # what would be read wants answers as well
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client has taken most of its answers."""
        self.writable = True
        self._transport.resume_reading()
        self._pump_blocked()

    # -- what streams call -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames that need no window."""
        if self._out is not None:
            self._out.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def write_data(self, number: int, stream: Stream, data: memoryview, before: bytes = b"", after: bytes = b"") -> int:
        """Send as much of ``data`` as the windows allow, after ``before`` and, when it is all, with ``after``.

        Gives the number of bytes sent; when that is not all, ``stream.pump`` is called later.
        """
        window = min(self.send_window, stream.send_window, len(data)) if self.writable else 0
        if window == len(data) <= self.max_frame:
            self.write(b"".join((before, frame(DATA, 0, number, bytes(data)) if window else b"", after)))
        else:
            parts = [before]
            for start in range(0, window, self.max_frame):
                parts.append(frame(DATA, 0, number, bytes(data[start : min(start + self.max_frame, window)])))
            if window == len(data):
                parts.append(after)
            self.write(b"".join(parts))
        self.send_window -= window
        stream.send_window -= window
        self._sent += window
        if window:
            self._patience = min(_PATIENCE, self._patience + _EARNED)
        if window == len(data):
            self._blocked.discard(stream)
        else:
            self._blocked.add(stream)
            self._watch_writing()
        return window

    def more_window(self, number: int, stream: Stream, size: int) -> None:
        """Let the client send that many more bytes on a stream."""
        if size:
            stream.receive_window += size
            self.write(frame(WINDOW_UPDATE, 0, number, struct.pack(">L", size)))

    def close_stream(self, number: int, error: int | None = None) -> None:
        """The stream is answered; with an error code it is reset."""
        if number not in self.streams:
            return
        if error is not None:
            self.write(frame(RST_STREAM, 0, number, struct.pack(">L", error)))
        self._patience = min(_PATIENCE, self._patience + _EARNED)
        self._forget(number)

    # -- leaving -----------------------------------------------------------------------------------------------------

    def drain(self, seconds: float = _PING_SECONDS) -> None:
        """Ask the client to go elsewhere with new requests (RFC 9113, section 6.8).

        Those on their way when it hears so are answered; after the last of these the connection
        ends. ``seconds``: how long to wait until it has heard.
        """
        if self._deaf or self._last != _LARGEST_STREAM:
            return
        self.write(_goaway(_LARGEST_STREAM, NO_ERROR) + frame(PING, 0, 0, _DRAIN_PING))
        self._loop.call_later(seconds, self._drained)

    def _drained(self) -> None:
        if self._deaf or self._last != _LARGEST_STREAM:
            return
        self._last = self._highest
        self.write(_goaway(self._last, NO_ERROR))
        if not self.streams:
            self._leave()

    def _leave(self) -> None:
        """All is answered: let the client close, so that nothing that it may still send resets the connection."""
        self._loop.call_later(_LINGER_SECONDS, self._transport.close)

    def give_up(self) -> None:
        """The time for a stop is over: end all streams."""
        for stream in list(self.streams.values()):
            stream.stopped()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is not yet sent."""
        self._transport.abort()

    def _fail(self, violation: _Violation) -> None:
        self._deaf = True
        self.write(_goaway(self._highest, violation.code, str(violation).encode()))
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out = []
        self._transport.close()

    def _check_idle(self) -> None:
        now = self._loop.time()
        idle = self._limits.idle_seconds
        if not self.streams:
            if now - self._last_active > idle - 0.001:
                self.drain(_DEAD_SECONDS)
            else:
                self._timer = self._loop.call_later(self._last_active + idle - now, self._check_idle)
        elif now - self._last_received > idle - 0.001:
            # It may be gone without a trace.
            self.write(frame(PING, 0, 0, _ALIVE_PING))
            self._timer = self._loop.call_later(_DEAD_SECONDS, self._check_alive, self._last_received)
        else:
            self._timer = self._loop.call_later(idle, self._check_idle)

    def _check_alive(self, before: float) -> None:
        if self._last_received == before:
            self._transport.abort()
        else:
            self._check_idle()

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            self._write_timer = self._loop.call_later(self._limits.receive_seconds, self._check_writing, self._sent)

    def _check_writing(self, before: int) -> None:
        self._write_timer = None
        if self.writable and not self._blocked:
            return
        if self._sent == before:
            self._transport.abort()
        else:
            self._watch_writing()

    def _pump_blocked(self) -> None:
        for stream in list(self._blocked):
            if not self.writable or self.send_window <= 0:
                break
            stream.pump()

    # -- frames ------------------------------------------------------------------------------------------------------

    def _frame(self, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise _Violation(PROTOCOL_ERROR, "a header block is interrupted")
        if kind == DATA:
            self._data_frame(flags, number, payload)
            return
        payload = bytes(payload)
        if kind == HEADERS:
            self._headers_frame(flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._window_frame(number, payload)
        else:
            self._lose_patience()
            if kind == PING:
                self._ping_frame(flags, number, payload)
            elif kind == SETTINGS:
                self._settings_frame(flags, number, payload)
            elif kind == RST_STREAM:
                self._reset_frame(number, payload)
            elif kind == CONTINUATION:
                self._continuation_frame(flags, payload)
            elif kind == PUSH_PROMISE:
                raise _Violation(PROTOCOL_ERROR, "a client pushes nothing")
            elif kind == PRIORITY and len(payload) != 5:
                raise _Violation(FRAME_SIZE_ERROR, "PRIORITY has 5 bytes")

    def _lose_patience(self) -> None:
        self._patience -= 1
        if self._patience < 0:
            now = self._loop.time()
            self._patience += int(min(_PATIENCE, (now - self._patience_time) * _EARNED_PER_SECOND))
            self._patience_time = now
        if self._patience < 0:
            raise _Violation(ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def _headers_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise _Violation(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & PADDED:
            payload = bytes(_unpadded(payload))
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise _Violation(FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._header_block(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))

    def _continuation_frame(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise _Violation(PROTOCOL_ERROR, "CONTINUATION of nothing")
        number, first_flags, block = self._block
        block += payload
        if len(block) > self._limits.header_bytes:
            raise _Violation(ENHANCE_YOUR_CALM, f"headers are larger than {self._limits.header_bytes} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._header_block(number, first_flags, bytes(block))

    def _header_block(self, number: int, flags: int, block: bytes) -> None:
        headers = self._blocks.get(block)
        if headers is None:
            headers = self._decode(block)
        stream = self.streams.get(number)
        if stream is not None:  # trailers
            if not flags & END_STREAM:
                raise _Violation(PROTOCOL_ERROR, "trailers must end the stream")
            self._hand_over(stream, b"", ended=True)
            return
        if number <= self._highest:
            self._lose_patience()  # of a stream that was reset
            return
        self._highest = number
        if number > self._last:
            return  # the client has been told that these are not answered, and asks elsewhere
        if len(self.streams) >= self._limits.connections:
            self._lose_patience()
            self.write(frame(RST_STREAM, 0, number, struct.pack(">L", REFUSED_STREAM)))
            return
        stream = self._shared.open_stream(self, number, headers)
        stream.send_window = self._first_window
        stream.receive_window = self._shared.stream_window
        self.streams[number] = stream
        self._hand_over(stream, b"", ended=bool(flags & END_STREAM))

    def _decode(self, block: bytes) -> dict[bytes, bytes]:
        table = self._decoder.header_table
        entries = table.dynamic_entries
        first = entries[0] if entries else None
        before = (table.maxsize, len(entries))
        try:
            headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except HPACKError as error:
            raise _Violation(COMPRESSION_ERROR, f"headers cannot be read: {error}") from None
        if (table.maxsize, len(entries)) != before or (entries and entries[0] is not first):
            self._blocks.clear()
        elif len(self._blocks) < _REMEMBERED_BLOCKS and len(block) <= _REMEMBERED_BYTES:
            self._blocks[block] = headers
        return headers

    def _data_frame(self, flags: int, number: int, payload: bytes | memoryview) -> None:
        size = len(payload)
        self._receive_window -= size
        self._received += size
        if self._receive_window < 0:
            raise _Violation(FLOW_CONTROL_ERROR, "more data than the window of the connection")
        if flags & PADDED:
            payload = _unpadded(payload)
        stream = self.streams.get(number)
        if stream is None:
            if number == 0 or number > self._highest:
                raise _Violation(PROTOCOL_ERROR, "DATA on no stream")
            self._lose_patience()  # of a stream that was reset or refused
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise _Violation(FLOW_CONTROL_ERROR, "more data than the window of the stream")
        if not payload and not flags & END_STREAM:
            self._lose_patience()
        if size != len(payload):  # padding is read by nobody
            self.more_window(number, stream, size - len(payload))
        self._hand_over(stream, payload, ended=bool(flags & END_STREAM))

    def _hand_over(self, stream: Stream, payload: bytes | memoryview, ended: bool) -> None:
        stream.data(payload, ended)
        if stream not in self._touched:
            self._touched.append(stream)

    def _window_frame(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _Violation(FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        increment = int.from_bytes(payload, "big") & _LARGEST_WINDOW
        if increment == 0:
            raise _Violation(PROTOCOL_ERROR, "a window grows by nothing")
        if not self._blocked:
            self._lose_patience()
        if number == 0:
            self.send_window += increment
            if self.send_window > _LARGEST_WINDOW:
                raise _Violation(FLOW_CONTROL_ERROR, "the window of the connection is too large")
            self._pump_blocked()
            return
        stream = self.streams.get(number)
        if stream is None:
            if number > self._highest:
                raise _Violation(PROTOCOL_ERROR, "WINDOW_UPDATE on no stream")
            return
        stream.send_window += increment
        if stream.send_window > _LARGEST_WINDOW:
            raise _Violation(FLOW_CONTROL_ERROR, "the window of a stream is too large")
        if stream in self._blocked:
            stream.pump()

    def _ping_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise _Violation(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, "PING has 8 bytes and no stream")
        if not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif payload == _DRAIN_PING:
            self._drained()

    def _settings_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _Violation(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise _Violation(FRAME_SIZE_ERROR, "SETTINGS has 6 bytes a setting")
        if flags & ACK:
            return
        first_window = self._first_window
        for key, value in struct.iter_unpack(">HL", payload):
            if key == _INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise _Violation(FLOW_CONTROL_ERROR, "the first window is too large")
                first_window = value
            elif key == _MAX_FRAME_SIZE:
                if not _SMALLEST_MAX_FRAME <= value <= _LARGEST_MAX_FRAME:
                    raise _Violation(PROTOCOL_ERROR, "no size of a frame")
                self.max_frame = min(value, 2**20)
        if first_window != self._first_window:  # once, however often a frame says it
            for stream in self.streams.values():
                stream.send_window += first_window - self._first_window
            self._first_window = first_window
        self.write(frame(SETTINGS, ACK, 0))
        self._pump_blocked()

    def _reset_frame(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _Violation(FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        if number == 0 or number > self._highest:
            raise _Violation(PROTOCOL_ERROR, "RST_STREAM on no stream")
        stream = self.streams.get(number)
        if stream is not None:
            self._forget(number)
            stream.cancelled()

    def _forget(self, number: int) -> None:
        self._blocked.discard(self.streams.pop(number))
        self._last_active = self._loop.time()
        if not self.streams and self._last != _LARGEST_STREAM:
            self._leave()


def _goaway(last: int, code: int, message: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + message)


def _checked(length: int) -> int:
    if length > _SMALLEST_MAX_FRAME:
        raise _Violation(FRAME_SIZE_ERROR, f"a frame has {length} bytes, at most {_SMALLEST_MAX_FRAME} are allowed")
    return length


def _unpadded(payload: bytes | memoryview) -> bytes | memoryview:
    if not payload or payload[0] >= len(payload):
        raise _Violation(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
