# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of HTTP/2 (RFC 9113, section 6): their numbers, how they are written, and what makes one malformed.

Header blocks that are written use no compression state, so that they can be made once and for all.
"""

import struct

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

ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x2, 0x4, 0x5
LARGEST_WINDOW = 2**31 - 1
LARGEST_STREAM = 2**31 - 1
DEFAULT_WINDOW = 65_535
SMALLEST_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = 2**24 - 1
HEAD = struct.Struct(">HBBBL")


class Violation(Exception):
    """The client breaks the protocol; the connection ends."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    length = len(payload)
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


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


def goaway(last: int, code: int, message: bytes = b"") -> bytes:
    """GOAWAY: streams up to ``last`` are answered, no others."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + message)


def checked(length: int) -> int:
    """The length of a frame. Raises Violation when it is more than this server's SETTINGS allow."""
    if length > SMALLEST_MAX_FRAME:
        raise Violation(FRAME_SIZE_ERROR, f"a frame has {length} bytes, at most {SMALLEST_MAX_FRAME} are allowed")
    return length


def unpadded(payload: bytes | memoryview) -> bytes | memoryview:
    """The payload of a padded frame without its padding. Raises Violation."""
    if not payload or payload[0] >= len(payload):
        raise Violation(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
