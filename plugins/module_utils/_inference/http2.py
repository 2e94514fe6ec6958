# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/2 (RFC 9113) for a client that has one request at a time, with the standard library."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass, field

from ansible_collections.edgeml.fleet.plugins.module_utils._inference import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5  # settings
REFUSED_STREAM, CANCEL = 7, 8  # codes of errors
DEFAULT_WINDOW, LARGEST_WINDOW = 65_535, 2**31 - 1
DEFAULT_FRAME = 16_384
RETURNED_WINDOW = 1 << 24  # bytes received before the server may send as many more
WRITE_BYTES = 1 << 18


class ProtocolError(ValueError):
    """The server does not speak HTTP/2 as it should."""


class UnansweredError(ConnectionError):
    """The server closed the connection, or said that it did nothing for the request."""


@dataclass
class Answer:
    """A server's answer: headers and trailers by name, and the body."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None  # the code with which the server gave up


class Http2Connection:
    """A connection over a connected socket, which it owns.

    Every method raises `ProtocolError`, `UnansweredError`, or the socket's own OSError; after any of them, and when
    `usable` is false, the connection can only be closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.usable = True
        self._socket = sock
        self._received = bytearray()
        self._greeted = False  # whether the server's settings have come
        self._next_stream = 1
        self._last_stream = LARGEST_WINDOW  # the last one that the server will answer
        self._window = DEFAULT_WINDOW  # what may be sent, on all streams together and on the one under way
        self._stream_window = self._initial_window = DEFAULT_WINDOW
        self._frame_size = DEFAULT_FRAME
        self._unreturned = 0
        settings = {HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: LARGEST_WINDOW}
        pairs = b"".join(struct.pack(">HI", name, value) for name, value in settings.items())
        more = struct.pack(">I", LARGEST_WINDOW - DEFAULT_WINDOW)
        self._unsent = PREFACE + _frame(SETTINGS, 0, 0, pairs) + _frame(WINDOW_UPDATE, 0, 0, more)

    def request(self, headers: bytes, body: bytes, deadline: float) -> Answer:
        """Send a request and return its answer.

        Parameters
        ----------
        headers : bytes
            A block as `hpack.encode` makes it.
        body : bytes
            At least one byte.
        deadline : float
            End of patience, by time.monotonic().
        """
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._stream_window = self._initial_window
        self._block = bytearray()
        answer = Answer()
        pending = bytearray(self._unsent + _frame(HEADERS, END_HEADERS, stream, headers))
        self._unsent = b""
        position = 0
        while position < len(body) and not answer.ended:
            room = min(self._window, self._stream_window, self._frame_size, len(body) - position)
            if room > 0:
                last = END_STREAM if position + room == len(body) else 0
                pending += _frame(DATA, last, stream, body[position : position + room])
                position += room
                self._window -= room
                self._stream_window -= room
            if room <= 0 or position == len(body) or len(pending) > WRITE_BYTES:
                self._send(pending, deadline)
                pending = bytearray()
            if room <= 0:
                self._take_frame(stream, answer, deadline)
        while not answer.ended:
            self._take_frame(stream, answer, deadline)
        if position < len(body):
            self.usable = False  # the rest of the body is missing
        return answer

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, data: bytes | bytearray, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        self._socket.sendall(data)

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(max(65_536, size - len(self._received)))
            if not data:
                raise UnansweredError("the server closed the connection")
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _take_frame(self, stream: int, answer: Answer, deadline: float) -> None:
        """Read one frame and do what it says."""
        head = self._read(9, deadline)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        number = int.from_bytes(head[5:], "big") & LARGEST_WINDOW
        if size > DEFAULT_FRAME or not (self._greeted or kind == SETTINGS):
            raise ProtocolError(f"no frame of HTTP/2 begins with {head!r}")
        self._greeted = True
        payload = self._read(size, deadline)
        if kind == SETTINGS and not flags & ACK:
            self._apply_settings(payload)
            self._send(_frame(SETTINGS, ACK, 0), deadline)
        elif kind == PING and not flags & ACK:
            self._send(_frame(PING, ACK, 0, payload), deadline)
        elif kind == WINDOW_UPDATE:
            self._widen(number, stream, _number(payload))
        elif kind == GOAWAY:
            self.usable = False
            self._last_stream = _number(payload)
            if self._last_stream < stream:
                raise UnansweredError(f"the server goes away {payload[8:].decode(errors='replace')}".strip())
        elif kind == DATA:
            self._return_window(size, deadline)
            if number == stream:
                answer.body += _unpadded(payload, flags)
                answer.ended = bool(flags & END_STREAM)
        elif kind in (HEADERS, CONTINUATION) and number == stream:
            self._take_headers(kind, flags, payload, answer)
        elif kind == RST_STREAM and number == stream:
            answer.reset, answer.ended = _number(payload), True
            if answer.reset == REFUSED_STREAM:
                raise UnansweredError("the server refused the stream")

    def _take_headers(self, kind: int, flags: int, payload: bytes, answer: Answer) -> None:
        if kind == HEADERS:
            payload = _unpadded(payload, flags)[5 if flags & PRIORITY else 0 :]
            self._ends_stream = bool(flags & END_STREAM)
        self._block += payload
        if not flags & END_HEADERS:
            return
        try:
            headers = hpack.decode(bytes(self._block))
        except (ValueError, IndexError) as error:
            raise ProtocolError(str(error)) from error
        self._block = bytearray()
        if headers.get(":status", "").startswith("1"):
            return  # the answer is still to come
        if answer.headers:
            answer.trailers = headers
        else:
            answer.headers = headers
        answer.ended = self._ends_stream

    def _apply_settings(self, payload: bytes) -> None:
        if len(payload) % 6:
            raise ProtocolError("the server's settings have a wrong size")
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME_SIZE:
                self._frame_size = value

    def _widen(self, number: int, stream: int, more: int) -> None:
        if number == 0:
            self._window += more
        elif number == stream:
            self._stream_window += more

    def _return_window(self, size: int, deadline: float) -> None:
        self._unreturned += size
        if self._unreturned > RETURNED_WINDOW:
            self._send(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreturned)), deadline)
            self._unreturned = 0


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("a frame has more padding than content")
    return payload[1 : len(payload) - payload[0]]


def _number(payload: bytes) -> int:
    """Return the 31 bits with which a frame's content begins."""
    if len(payload) < 4:
        raise ProtocolError("a frame is too short")
    return int.from_bytes(payload[:4], "big") & LARGEST_WINDOW
