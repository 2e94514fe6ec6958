# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of HTTP/2 (RFC 9113), for clients that break its rules."""

import struct
from typing import BinaryIO

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def read_frame(received: BinaryIO) -> tuple[int, int, int, bytes]:
    """The next frame: kind, flags, stream, payload."""
    head = received.read(9)
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return kind, flags, stream, received.read(int.from_bytes(head[:3], "big"))


def header(name: str, value: bytes) -> bytes:
    """A header in HPACK (RFC 7541), as a literal that is not indexed."""
    return b"\0" + _text(name.encode()) + _text(value)


def call(stream: int, method: str, body: bytes, flags: int = END_STREAM, *extra: bytes) -> bytes:
    """The frames of one gRPC call; ``extra`` are more headers."""
    head = b"".join(
        (
            header(":method", b"POST"),
            header(":scheme", b"http"),
            header(":path", method.encode()),
            header(":authority", b"localhost"),
            header("content-type", b"application/grpc"),
            header("te", b"trailers"),
            *extra,
        )
    )
    return frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, flags, stream, body)


def message(body: bytes, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(body)) + body


def _text(data: bytes) -> bytes:
    if len(data) < 127:
        return bytes([len(data)]) + data
    length, encoded = len(data) - 127, bytearray([127])
    while length >= 128:
        encoded.append(length % 128 + 128)
        length //= 128
    encoded.append(length)
    return bytes(encoded) + data
