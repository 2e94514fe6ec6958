# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What each frame from an HTTP/2 client means (RFC 9113, section 6). Header blocks are read by the library hpack."""

import struct
from collections import deque

from hpack import Decoder, HPACKError

from edgeml_runtime.transports.grpc.fields import checked_fields
from edgeml_runtime.transports.grpc.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_MAX_FRAME,
    LARGEST_STREAM,
    LARGEST_WINDOW,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    SMALLEST_MAX_FRAME,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Violation,
    frame,
    unpadded,
)
from edgeml_runtime.transports.grpc.windows import CONNECTION_WINDOW, PATIENCE, Shared, Stream, Windows

_EARNED_PER_SECOND = 10

# Header blocks that changed nothing in the decoder mean the same when they come again.
_REMEMBERED_BLOCKS = 64
_REMEMBERED_BYTES = 1024
DRAIN_PING = b"draining"


_REMEMBERED_STREAMS = 256
_FIRST = (0, 0, bytearray())


class Receiving(Windows):
    """The receiving side of a connection, frame by frame; ``http2.Connection`` cuts them out of what is read."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._decoder = Decoder(max_header_list_size=shared.limits.header_bytes)
        self._blocks: dict[bytes, dict[bytes, bytes]] = {}
        #: Stream, flags, what came so far; the first frame is awaited as if it were the rest of a block.
        self._block: tuple[int, int, bytearray] | None = _FIRST
        #: Streams that were reset here, whose client may not know it yet; those that ended before.
        self._reset_here: deque[int] = deque(maxlen=_REMEMBERED_STREAMS)
        self._ended_before: deque[int] = deque(maxlen=_REMEMBERED_STREAMS)
        self._touched: list[Stream] = []
        self._highest = 0  # stream seen
        self._last = LARGEST_STREAM  # stream that will be answered
        self._patience_time = shared.loop.time()
        self._received = 0  # bytes of data that the client has not heard to be read
        self._receive_window = CONNECTION_WINDOW

    def _note_reset(self, number: int) -> None:
        self._reset_here.append(number)

    def _drained(self) -> None:
        """The client has heard that it is to go elsewhere."""
        raise NotImplementedError

    def _frame(self, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            if self._block is not _FIRST:
                raise Violation(PROTOCOL_ERROR, "a header block is interrupted")
            if kind != SETTINGS or flags & ACK:
                raise Violation(PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._block = None
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
                raise Violation(PROTOCOL_ERROR, "a client pushes nothing")
            elif kind == PRIORITY and (len(payload) != 5 or not number):
                code = PROTOCOL_ERROR if not number else FRAME_SIZE_ERROR
                raise Violation(code, "PRIORITY has 5 bytes and a stream")
            elif kind == GOAWAY and (number or len(payload) < 8):
                raise Violation(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, "GOAWAY has 8 bytes and no stream")

    def _lose_patience(self) -> None:
        self._patience -= 1
        if self._patience < 0:
            now = self._loop.time()
            self._patience += int(min(PATIENCE, (now - self._patience_time) * _EARNED_PER_SECOND))
            self._patience_time = now
        if self._patience < 0:
            raise Violation(ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def _headers_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise Violation(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & PADDED:
            payload = bytes(unpadded(payload))
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise Violation(FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._header_block(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))

    def _continuation_frame(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Violation(PROTOCOL_ERROR, "CONTINUATION of nothing")
        number, first_flags, block = self._block
        block += payload
        if len(block) > self._limits.header_bytes:
            raise Violation(ENHANCE_YOUR_CALM, f"headers are larger than {self._limits.header_bytes} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._header_block(number, first_flags, bytes(block))

    def _header_block(self, number: int, flags: int, block: bytes) -> None:
        headers = self._blocks.get(block)
        stream = self.streams.get(number)
        if headers is None:
            headers = self._decode(block, is_trailer=stream is not None)
        if stream is not None:  # trailers
            if stream.ended:
                raise Violation(STREAM_CLOSED, "HEADERS after the end of the stream")
            if not flags & END_STREAM or headers is None or b":method" in headers:
                self._stream_error(number, stream, PROTOCOL_ERROR)
                return
            self._hand_over(stream, b"", ended=True)
            return
        if number <= self._highest:
            if number not in self._reset_here:
                code = STREAM_CLOSED if number in self._ended_before else PROTOCOL_ERROR
                raise Violation(code, "HEADERS of a stream that is over, or below another")
            self._lose_patience()
            return
        self._highest = number
        if number > self._last:
            self._note_reset(number)
            return  # the client has been told that these are not answered, and asks elsewhere
        if headers is None:
            self._stream_error(number, None, PROTOCOL_ERROR)
            return
        if len(self.streams) >= self._limits.connections:
            self._stream_error(number, None, REFUSED_STREAM)
            return
        stream = self._shared.open_stream(self, number, headers)
        stream.send_window = self._first_window
        stream.receive_window = self._shared.stream_window
        self.streams[number] = stream
        self._hand_over(stream, b"", ended=bool(flags & END_STREAM))

    def _stream_error(self, number: int, stream: Stream | None, code: int) -> None:
        # Clients that provoke resets make as much work as those that reset themselves.
        self._lose_patience()
        self.write(frame(RST_STREAM, 0, number, struct.pack(">L", code)))
        self._reset_here.append(number)
        if stream is not None:
            self._forget(number)
            stream.cancelled()

    def _decode(self, block: bytes, is_trailer: bool) -> dict[bytes, bytes] | None:
        """The headers, or None when they are malformed (RFC 9113, section 8.1.1)."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        first = entries[0] if entries else None
        before = (table.maxsize, len(entries))
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            raise Violation(COMPRESSION_ERROR, f"headers cannot be read: {error}") from None
        headers = checked_fields(fields, is_trailer)
        if (table.maxsize, len(entries)) != before or (entries and entries[0] is not first):
            self._blocks.clear()
        elif headers is not None and len(self._blocks) < _REMEMBERED_BLOCKS and len(block) <= _REMEMBERED_BYTES:
            self._blocks[block] = headers
        return headers

    def _data_frame(self, flags: int, number: int, payload: bytes | memoryview) -> None:
        size = len(payload)
        self._receive_window -= size
        self._received += size
        if self._receive_window < 0:
            raise Violation(FLOW_CONTROL_ERROR, "more data than the window of the connection")
        if flags & PADDED:
            payload = unpadded(payload)
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise Violation(PROTOCOL_ERROR, "DATA on an idle stream")
            if number in self._reset_here:
                self._lose_patience()
            else:
                self._stream_error(number, None, STREAM_CLOSED)
            return
        if stream.ended:
            raise Violation(STREAM_CLOSED, "DATA after the end of the stream")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise Violation(FLOW_CONTROL_ERROR, "more data than the window of the stream")
        if not payload and not flags & END_STREAM:
            self._lose_patience()
        if size != len(payload):  # padding is read by nobody
            self.more_window(number, stream, size - len(payload))
        self._hand_over(stream, payload, ended=bool(flags & END_STREAM))

    def _is_idle(self, number: int) -> bool:
        """Whether no stream of that number was ever opened: even ones would be ours, and we open none."""
        return number % 2 == 0 or number > self._highest

    def _hand_over(self, stream: Stream, payload: bytes | memoryview, ended: bool) -> None:
        stream.data(payload, ended)
        if stream not in self._touched:
            self._touched.append(stream)

    def _window_frame(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        increment = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if not self._blocked:
            self._lose_patience()
        if number == 0:
            if increment == 0:
                raise Violation(PROTOCOL_ERROR, "WINDOW_UPDATE with an increment of 0")
            self.send_window += increment
            if self.send_window > LARGEST_WINDOW:
                raise Violation(FLOW_CONTROL_ERROR, "the window of the connection is too large")
            self._pump_blocked()
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise Violation(PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return
        stream.send_window += increment
        if increment == 0 or stream.send_window > LARGEST_WINDOW:
            self._stream_error(number, stream, FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR)
            return
        if stream in self._blocked:
            stream.pump()

    def _ping_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Violation(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, "PING has 8 bytes and no stream")
        if not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif payload == DRAIN_PING:
            self._drained()

    def _settings_frame(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Violation(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise Violation(FRAME_SIZE_ERROR, "SETTINGS has 6 bytes a setting")
        if flags & ACK:
            return
        first_window = self._first_window
        for key, value in struct.iter_unpack(">HL", payload):
            if key == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise Violation(FLOW_CONTROL_ERROR, "the first window is too large")
                first_window = value
            elif key == ENABLE_PUSH and value > 1:
                raise Violation(PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
            elif key == MAX_FRAME_SIZE:
                if not SMALLEST_MAX_FRAME <= value <= LARGEST_MAX_FRAME:
                    raise Violation(PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self.max_frame = min(value, 2**20)
        if first_window != self._first_window:  # once, however often a frame says it
            for stream in self.streams.values():
                stream.send_window += first_window - self._first_window
                if stream.send_window > LARGEST_WINDOW:
                    raise Violation(FLOW_CONTROL_ERROR, "the window of a stream is too large")
            self._first_window = first_window
        self.write(frame(SETTINGS, ACK, 0))
        self._pump_blocked()

    def _reset_frame(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        if self._is_idle(number):
            raise Violation(PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self.streams.get(number)
        if stream is not None:
            self._forget(number)
            stream.cancelled()
