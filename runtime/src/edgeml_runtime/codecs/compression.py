# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bodies in gzip and deflate, the content codings that clients of the protocol use (RFC 9110, section 8.4.1)."""

import zlib
from collections.abc import Iterable

from edgeml_runtime.errors import Failure, RequestError, invalid

# zlib's window size with the format: 16 is added for gzip.
_WINDOW = {"gzip": zlib.MAX_WBITS + 16, "x-gzip": zlib.MAX_WBITS + 16, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # the higher ones cost several times as much for a few percent
_STEP = 64 * 1024
_MOST_MEMBERS = 1024
#: Bytes of a body that are decompressed on the event loop: a thread costs 50 microseconds.
#: Data that expands a thousand times takes 3 ms then.
DECOMPRESSED_HERE = 2 * 1024


def decompress(coding: str, body: bytes | memoryview, limit: int) -> bytes:
    """The body before its content coding. Never makes more than ``limit`` bytes of it.

    Raises RequestError: invalid for an unknown coding or damaged data, too large beyond the limit.
    """
    window = _WINDOW.get(coding.lower())
    if window is None:
        raise invalid(f"content-encoding '{coding[:100]}' is not supported; gzip and deflate are")
    stream = zlib.decompressobj(window)
    parts: list[bytes] = []
    size = members = 0
    view = memoryview(body)
    try:
        for start in range(0, len(view), _STEP):
            part = stream.decompress(view[start : start + _STEP], limit + 1 - size)
            size += len(part)
            if size > limit:
                raise RequestError(Failure.TOO_LARGE, f"the decompressed body is larger than {limit} bytes")
            parts.append(part)
            while stream.eof:
                rest = stream.unused_data
                if not rest and start + _STEP >= len(view):
                    return b"".join(parts)
                if window <= zlib.MAX_WBITS:
                    raise invalid(
                        f"{len(rest) + len(view[start + _STEP :])} bytes follow the {coding} data of the body"
                    )
                # gzip may have several members (RFC 1952, section 2.2).
                members += 1
                if members > _MOST_MEMBERS:
                    raise RequestError(Failure.TOO_LARGE, f"the body has more than {_MOST_MEMBERS} members of {coding}")
                stream = zlib.decompressobj(window)
                if not rest:
                    break
                part = stream.decompress(rest, limit + 1 - size)
                size += len(part)
                if size > limit:
                    raise RequestError(Failure.TOO_LARGE, f"the decompressed body is larger than {limit} bytes")
                parts.append(part)
    except zlib.error as error:
        raise invalid(f"the body is no {coding} data: {error}") from None
    raise invalid(f"the body ends within its {coding} data")


def compress(coding: str, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The parts of a body, one after the other, in gzip or deflate."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    compressed = [stream.compress(part) for part in parts]
    return b"".join((*compressed, stream.flush()))


def accepted(header: str) -> str:
    """Which of gzip and deflate an Accept-Encoding header prefers; empty for neither (RFC 9110, section 12.5.3)."""
    best, best_weight = "", 0.0
    for item in header.lower().split(","):
        coding, _, parameter = item.partition(";")
        name, _, value = parameter.partition("=")
        try:
            weight = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weight = 0.0
        if coding.strip() in ("gzip", "deflate") and weight > best_weight:
            best, best_weight = coding.strip(), weight
    return best
