# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocol Buffers with the standard library: a table of messages, and two functions that follow it.

A table says of each message its fields: name to (number, kind), where a kind is a scalar or a message of the table and
"*" after it marks a repeated field. A message is a dict in Python. Fields that a table leaves out are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Mapping, Tuple

Table = Mapping[str, Mapping[str, Tuple[int, str]]]

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
VARINTS = ("bool", "int32", "int64", "uint32", "uint64")
FIXED = {"float": (FOUR_BYTES, "f"), "double": (EIGHT_BYTES, "d")}
LONGEST_VARINT = 10  # bytes


def encode(table: Table, name: str, values: Mapping[str, Any]) -> bytes:
    """Return a message's bytes. A single field of value zero, False or empty is left out, as proto3 does."""
    parts: list[bytes] = []
    for field, (number, kind) in table[name].items():
        value = values.get(field)
        if not value:
            continue
        scalar = kind.rstrip("*")
        if scalar in VARINTS or scalar in FIXED:
            if kind.endswith("*"):
                packed = b"".join(_scalar(scalar, item) for item in value)
                parts.append(_tag(number, LENGTH) + _varint(len(packed)) + packed)
            else:
                parts.append(_tag(number, FIXED.get(scalar, (VARINT,))[0]) + _scalar(scalar, value))
            continue
        for item in value if kind.endswith("*") else (value,):
            content = (
                item if scalar == "bytes" else item.encode() if scalar == "string" else encode(table, scalar, item)
            )
            parts += (_tag(number, LENGTH), _varint(len(content)), content)
    return b"".join(parts)


def decode(table: Table, name: str, data: bytes | memoryview) -> dict[str, Any]:
    """Return a message's fields, those that were not sent with the value zero, False or empty, messages as None.

    Raises
    ------
    ValueError
        The bytes are no message, or a field is not of its kind.
    """
    fields = {number: (field, kind) for field, (number, kind) in table[name].items()}
    values: dict[str, Any] = {field: _empty(table, kind) for field, kind in fields.values()}
    for number, wire, content in _fields(memoryview(data)):
        if number not in fields:
            continue
        field, kind = fields[number]
        scalar = kind.rstrip("*")
        items = _items(table, scalar, wire, content)
        if kind.endswith("*"):
            values[field].extend(items)
        elif items:
            values[field] = items[-1]
    return values


def _empty(table: Table, kind: str) -> Any:
    if kind.endswith("*"):
        return []
    if kind in table:
        return None
    return {"string": "", "bytes": b"", "bool": False}.get(kind, 0)


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and content of each field: a number where it is a varint, else bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _read_varint(data, position)
            yield number, wire, value
            continue
        if wire == LENGTH:
            size, position = _read_varint(data, position)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            size = 4 if wire == FOUR_BYTES else 8
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        if number == 0 or position + size > len(data):
            raise ValueError(f"field {number} of {size} bytes does not fit the message")
        yield number, wire, data[position : position + size]
        position += size


def _items(table: Table, kind: str, wire: int, content: Any) -> Sequence[Any]:
    """Return the values of one occurrence of a field: one, or several that are packed."""
    if kind in VARINTS and wire == VARINT:
        return [_number(kind, content)]
    if kind in VARINTS and wire == LENGTH:
        numbers, position = [], 0
        while position < len(content):
            value, position = _read_varint(content, position)
            numbers.append(_number(kind, value))
        return numbers
    if kind in FIXED and wire in (FIXED[kind][0], LENGTH):
        letter = FIXED[kind][1]
        if len(content) % struct.calcsize(letter):
            raise ValueError(f"{len(content)} bytes hold no whole number of type {kind}")
        return struct.unpack(f"<{len(content) // struct.calcsize(letter)}{letter}", content)
    if wire == LENGTH and kind == "bytes":
        return [bytes(content)]
    if wire == LENGTH and kind == "string":
        return [bytes(content).decode()]
    if wire == LENGTH and kind in table:
        return [decode(table, kind, content)]
    raise ValueError(f"a field of type {kind} has the wire type {wire}")


def _number(kind: str, value: int) -> int | bool:
    if kind == "bool":
        return value != 0
    bits = 32 if kind.endswith("32") else 64
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind.startswith("int") and value >> (bits - 1) else value


def _scalar(kind: str, value: Any) -> bytes:
    if kind in FIXED:
        return struct.pack("<" + FIXED[kind][1], value)
    return _varint(int(value) & ((1 << 64) - 1))


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & ((1 << 64) - 1), position + index + 1
    raise ValueError("a number does not end")
