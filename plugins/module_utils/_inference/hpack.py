# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Header compression of HTTP/2 (RFC 7541) for a client that allows its server no dynamic table.

So a block of headers means the same whatever came before it, and only three names of the static table can matter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

# Bits of each byte's code, and of the end's, a digit to base 32 each. The code is canonical: the lengths make it.
_CODE_LENGTHS = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad67777777777777777777777878djde6f565"
    "65666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmnqqkjmnmp"
    "qqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrqu"
)
_STATIC_ENTRIES = 61
_STATUSES = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
_CONTENT_TYPE = 31


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a block of headers, each spelled out and marked as not to be remembered by anybody."""
    parts = [b"\x10" + _text(name) + _text(value) for name, value in headers]
    return b"".join(parts)


@functools.lru_cache(maxsize=64)  # a server says the same with each answer
def decode(block: bytes) -> dict[str, str]:
    """Return the headers of a block by name, those of the static table that cannot matter under the name "".

    Raises
    ------
    ValueError
        The block is damaged, or refers to a dynamic table.
    """
    headers: dict[str, str] = {}
    position = 0
    while position < len(block):
        first = block[position]
        if first & 0x80:
            index, position = _integer(block, position, 7)
            name = _static_name(index)
            value = _STATUSES.get(index, "")
        elif first & 0xE0 == 0x20:  # the size of the dynamic table, which is zero
            _size, position = _integer(block, position, 5)
            continue
        else:
            index, position = _integer(block, position, 6 if first & 0x40 else 4)
            if index:
                name = _static_name(index)
            else:
                name, position = _string(block, position)
            value, position = _string(block, position)
        headers[name] = value
    return headers


def _static_name(index: int) -> str:
    if not 1 <= index <= _STATIC_ENTRIES:
        raise ValueError(f"header {index} of a table that does not exist")
    return ":status" if index in _STATUSES else "content-type" if index == _CONTENT_TYPE else ""


def _text(text: str) -> bytes:
    data = text.encode()
    return _prefixed(len(data), 7) + data


def _prefixed(value: int, bits: int) -> bytes:
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    parts, value = bytearray([limit]), value - limit
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(parts) + bytes([value])


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """Return an integer that begins with the last `bits` of a byte, and the position behind it."""
    limit = (1 << bits) - 1
    value = block[position] & limit
    if value < limit:
        return value, position + 1
    for index, byte in enumerate(block[position + 1 : position + 6]):
        value += (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + 2 + index
    raise ValueError("an integer of the headers does not end")


def _string(block: bytes, position: int) -> tuple[str, int]:
    if position >= len(block):
        raise ValueError("the headers end too early")
    coded = block[position] & 0x80
    size, position = _integer(block, position, 7)
    data = block[position : position + size]
    if len(data) != size:
        raise ValueError("the headers end too early")
    return (_huffman(data) if coded else data).decode(errors="replace"), position + size


@functools.lru_cache(maxsize=1)
def _codes() -> dict[tuple[int, int], int]:
    """Return the byte (256: the end) of each code, by the code's length and value."""
    lengths = [int(digit, 32) for digit in _CODE_LENGTHS]
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        code <<= length - before
        codes[length, code] = symbol
        code, before = code + 1, length
    return codes


def _huffman(data: bytes) -> bytes:
    codes = _codes()
    text, code, length = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, length = code << 1 | byte >> shift & 1, length + 1
            symbol = codes.get((length, code))
            if symbol is not None:
                text.append(symbol)  # the end, 256, is no byte: ValueError
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise ValueError("a header's text does not end with a code")
    return bytes(text)
