# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 (RFC 9113) as far as a server of calls needs it: the life of a connection, and how to leave.

What it is made of: ``frames``, ``windows`` (sending), ``receiving`` (what frames mean), and here what the
event loop calls. One object, since each call between objects costs every request.
"""

import asyncio
import struct

from edgeml_runtime.transports.credentials import common_name
from edgeml_runtime.transports.grpc.frames import (
    DATA,
    HEAD,
    LARGEST_STREAM,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    WINDOW_UPDATE,
    Violation,
    checked,
    frame,
    goaway,
)
from edgeml_runtime.transports.grpc.receiving import DRAIN_PING, Receiving
from edgeml_runtime.transports.grpc.windows import CONNECTION_WINDOW, Shared
from edgeml_runtime.transports.unsent import close

_MUCH = 1024  # bytes of data of a frame

# What is handled in one turn of the event loop; the rest waits, so that other connections come between. A unit is what
# a small frame of data takes, one to three microseconds: in a turn there is room for 1 MiB of a body, or some 50 calls.
_UNITS_PER_TURN = 1024
_DATA_PER_UNIT = 1024  # bytes
_UNITS_OF_CALL = 16
_HEADERS_PER_UNIT = 4  # each byte may be a header

# How long a client may take to close after it was asked to.
_LINGER_SECONDS = 2.0
# How long to wait for the answer to the ping that follows the first GOAWAY when the server stops.
_PING_SECONDS = 1.0
# How long a silent client may take to answer a ping.
_DEAD_SECONDS = 20.0
_ALIVE_PING = b"alive?  "


class Connection(Receiving):
    """A client's connection."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._rest = bytearray()  # of a frame that is not complete
        self._unparsed: bytes | memoryview = b""  # complete frames for the next turn
        self._units_left = _UNITS_PER_TURN
        self._greeted = False
        self._deaf = False
        self._timer: asyncio.TimerHandle | None = None
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
        """Handle frames that are complete, then send at once what came of it."""
        if self._deaf:
            return
        self._last_received = self._loop.time()
        if self._units_left <= 0 or self._unparsed:  # it was on its way when reading was paused
            self._unparsed = bytes(self._unparsed) + data
        else:
            self._handle(data)

    def _handle(self, data: bytes | memoryview) -> None:
        self._out = []
        try:
            if not self._greeted:
                data = self._without_preface(data)
            position = self._complete_frame(data) if self._rest else 0
            end = len(data)
            left = self._units_left
            while end - position >= HEAD.size:
                high, low, kind, flags, stream = HEAD.unpack_from(data, position)
                following = position + HEAD.size + checked(high << 8 | low)
                if following > end:
                    break
                if left <= 0:
                    self._unparsed = memoryview(data)[position:]
                    position = end
                    break
                position += HEAD.size
                size = following - position
                if kind == DATA:
                    left -= 1 + size // _DATA_PER_UNIT
                    # Much data is copied once, to its place.
                    payload = memoryview(data)[position:following] if size > _MUCH else data[position:following]
                else:
                    left -= _UNITS_OF_CALL + size // _HEADERS_PER_UNIT
                    payload = data[position:following]
                self._frame(kind, flags, stream & LARGEST_STREAM, payload)
                position = following
            self._units_left = left
            if position < end:
                self._rest += data[position:]
            touched, self._touched = self._touched, []
            for touched_stream in touched:
                touched_stream.ready()
            if self._received > CONNECTION_WINDOW // 2:
                self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self._received)))
                self._receive_window += self._received
                self._received = 0
            if self._units_left <= 0 and not self._transport.is_closing():
                self._transport.pause_reading()
                self._loop.call_soon(self._next_turn)
        except Violation as violation:
            self._fail(violation)
        finally:
            out = self._out
            self._out = None
            if out and not self._transport.is_closing():
                self._transport.write(b"".join(out) if len(out) > 1 else out[0])

    def _next_turn(self) -> None:
        self._units_left = _UNITS_PER_TURN
        self._read_on()

    def _read_on(self) -> None:
        if self._deaf or self._units_left <= 0 or not self.writable:
            return
        if self._unparsed:
            data, self._unparsed = self._unparsed, b""
            self._handle(data)
        if not self._unparsed and self._units_left > 0 and self.writable and not self._transport.is_closing():
            self._transport.resume_reading()

    def _without_preface(self, data: bytes | memoryview) -> bytes:
        """What follows the preface, which may come in pieces."""
        self._rest += data
        if self._rest[: len(PREFACE)] != PREFACE[: len(self._rest)]:
            raise Violation(PROTOCOL_ERROR, "no HTTP/2")
        if len(self._rest) < len(PREFACE):
            return b""
        self._greeted = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.idle_seconds, self._check_idle)
        data = bytes(self._rest[len(PREFACE) :])
        self._rest.clear()
        return data

    def _complete_frame(self, data: bytes | memoryview) -> int:
        """Complete the frame that began in an earlier read; where in ``data`` the next one begins."""
        rest = self._rest
        position = 0
        if not self._greeted:
            return len(data)
        if len(rest) < HEAD.size:
            position = HEAD.size - len(rest)
            rest += data[:position]
            if len(rest) < HEAD.size:
                return len(data)
        high, low, kind, flags, stream = HEAD.unpack_from(rest)
        missing = HEAD.size + checked(high << 8 | low) - len(rest)
        rest += data[position : position + missing]
        position += missing
        if position > len(data):
            return len(data)
        self._rest = bytearray()
        self._units_left -= _UNITS_OF_CALL
        self._frame(kind, flags, stream & LARGEST_STREAM, bytes(rest[HEAD.size :]))
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
        self._count_buffered(0)
        self._unparsed = b""
        streams = list(self.streams.values())
        self.streams.clear()
        self._blocked.clear()
        self._touched = []  # of frames before one that broke the rules
        for stream in streams:
            stream.cancelled()

    # -- leaving -----------------------------------------------------------------------------------------------------

    def drain(self, seconds: float = _PING_SECONDS) -> None:
        """Ask the client to go elsewhere with new requests (RFC 9113, section 6.8).

        Those on their way when it hears so are answered; after the last of these the connection
        ends. ``seconds``: how long to wait until it has heard.
        """
        if self._deaf or self._last != LARGEST_STREAM:
            return
        self.write(goaway(LARGEST_STREAM, NO_ERROR) + frame(PING, 0, 0, DRAIN_PING))
        self._loop.call_later(seconds, self._drained)

    def _drained(self) -> None:
        if self._deaf or self._last != LARGEST_STREAM:
            return
        self._last = self._highest
        self.write(goaway(self._last, NO_ERROR))
        if not self.streams:
            self._leave()

    def _leave(self) -> None:
        """All is answered: let the client close, so that nothing that it may still send resets the connection."""
        self._loop.call_later(_LINGER_SECONDS, close, self._transport, self._limits.receive_seconds)

    def _fail(self, violation: Violation) -> None:
        self._deaf = True
        self.write(goaway(self._highest, violation.code, str(violation).encode()))
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out = []
        close(self._transport, self._limits.receive_seconds)

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

    def _forget(self, number: int) -> None:
        self._blocked.discard(self.streams.pop(number))
        self._ended_before.append(number)
        self._last_active = self._loop.time()
        if not self.streams and self._last != LARGEST_STREAM:
            self._leave()
