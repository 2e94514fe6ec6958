# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Flow control of an HTTP/2 connection (RFC 9113, section 5.2): what may be sent now, and what waits for a window."""

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from edgeml_runtime.config import Limits
from edgeml_runtime.transports.grpc.frames import (
    DATA,
    DEFAULT_WINDOW,
    INITIAL_WINDOW_SIZE,
    RST_STREAM,
    SETTINGS,
    SMALLEST_MAX_FRAME,
    WINDOW_UPDATE,
    frame,
)
from edgeml_runtime.transports.unsent import LARGE, Unsent, close

#: Bytes that a client may send on a connection before it hears that they have been read.
CONNECTION_WINDOW = 2**24

#: Frames that carry no request until the client is sent away; what is answered and time itself earn more of them.
PATIENCE = 2000
_EARNED = 20


class Receiver(Protocol):
    """Who handles what comes in on a stream."""

    #: Bytes that may still be received; the connection keeps it.
    receive_window: int
    #: The client has sent all it will on it.
    ended: bool


class Stream(Receiver, Protocol):
    """What a connection tells the one who handles a stream."""

    #: Bytes that may be sent; the connection keeps it.
    send_window: int

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


Open = Callable[["Windows", int, Mapping[bytes, bytes]], Stream]


class Shared:
    """What the connections of one listener share."""

    def __init__(
        self,
        open_stream: Open,
        stream_window: int,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        unsent: Unsent | None = None,
    ) -> None:
        """``unsent``: of all listeners together."""
        self.open_stream = open_stream
        self.stream_window = stream_window
        self.limits = limits
        self.loop = loop
        self.connections: set[Windows] = set()
        self.draining = False
        self.unsent = Unsent(limits.unsent_listener_bytes, unsent)
        #: Set while there is no connection.
        self.empty = asyncio.Event()
        self.empty.set()
        settings = {
            0x3: limits.connections,  # streams at once
            INITIAL_WINDOW_SIZE: stream_window,
            0x6: limits.header_bytes,
        }
        payload = b"".join(struct.pack(">HL", key, value) for key, value in settings.items())
        more = struct.pack(">L", CONNECTION_WINDOW - DEFAULT_WINDOW)
        self.greeting = frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, more)


class Windows(asyncio.Protocol):
    """The sending side of a connection; ``receiving.Receiving`` handles what comes in."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._loop = shared.loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.client = "unix"
        self.certificate_name: str | None = None
        self.streams: dict[int, Stream] = {}
        self.send_window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW  # of a new stream
        self.max_frame = SMALLEST_MAX_FRAME
        self._out: list[bytes] | None = None  # while what was received is being handled
        self.writable = True
        self._blocked: set[Stream] = set()  # have something to send and may not
        self._sent = 0
        #: Answers that wait for this client: for a window, or in the buffer of the transport.
        self.unsent = Unsent(shared.limits.unsent_connection_bytes, shared.unsent)
        self._buffered = 0
        self._patience = PATIENCE
        self._write_timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client takes its answers slowly."""
        self.writable = False
        self._count_buffered(self._transport.get_write_buffer_size())
        self._transport.pause_reading()  # what would be read wants answers as well
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client has taken most of its answers."""
        self.writable = True
        self._count_buffered(0)
        self._pump_blocked()
        self._read_on()

    # -- what streams call -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames that need no window."""
        if self._out is not None:
            self._out.append(data)
            if len(data) >= LARGE and not self._transport.is_closing():
                # Whether the client takes it is to be known before the next answer.
                out = b"".join(self._out)
                self._out.clear()
                self._transport.write(out)
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
            self._patience = min(PATIENCE, self._patience + _EARNED)
        if window == len(data):
            self._blocked.discard(stream)
        else:
            self._blocked.add(stream)
            self._watch_writing()
        return window

    def more_window(self, number: int, stream: Receiver, size: int) -> None:
        """Let the client send that many more bytes on a stream."""
        if size:
            stream.receive_window += size
            self.write(frame(WINDOW_UPDATE, 0, number, struct.pack(">L", size)))

    def close_stream(self, number: int, error: int | None = None) -> None:
        """The stream is answered; with an error code it is reset."""
        if number not in self.streams:
            return
        if error is not None:
            self._note_reset(number)
            self.write(frame(RST_STREAM, 0, number, struct.pack(">L", error)))
        self._patience = min(PATIENCE, self._patience + _EARNED)
        self._forget(number)

    # -- leaving -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Ask the client to go elsewhere with new requests."""
        raise NotImplementedError

    def give_up(self) -> None:
        """The time for a stop is over: end all streams."""
        for stream in list(self.streams.values()):
            stream.stopped()
        close(self._transport, self._limits.receive_seconds)

    def abort(self) -> None:
        """Close at once, whatever is not yet sent."""
        self._transport.abort()

    # -- private -----------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """Read what was left while nothing could be written."""
        raise NotImplementedError

    def _note_reset(self, number: int) -> None:
        """A stream is reset here; the client may not know it yet."""
        raise NotImplementedError

    def _forget(self, number: int) -> None:
        """A stream is over."""
        raise NotImplementedError

    def _count_buffered(self, size: int) -> None:
        self.unsent.add(size - self._buffered)
        self._buffered = size

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
