# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which other files an ONNX file keeps its weights in (onnx.proto3, ``TensorProto.external_data``)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Union

Data = Union[bytes, mmap.mmap]

#: Fields that lead to tensors, by kind of message: number of the field, and the kind of what it holds.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 64  # messages within each other


def external_files(path: Path) -> list[str]:
    """Return the names of the files, relative to the directory of `path`, that hold weights of an ONNX file.

    A file that is not ONNX has none.
    """
    if not path.stat().st_size:
        return []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return sorted(set(_locations(data, 0, len(data), "model", 0)))
    except (ValueError, IndexError):
        return []


def _locations(data: Data, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    wanted = _FIELDS[kind]
    for number, begin, finish in _fields(data, start, end):
        held = wanted.get(number)
        if held == "entry":
            entry = {key: data[a:b] for key, a, b in _fields(data, begin, finish)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()
        elif held is not None:
            yield from _locations(data, begin, finish, held, depth + 1)


def _fields(data: Data, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field of a message; skip the others."""
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            _value, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, position, position + length
            position += length
        else:
            raise ValueError("no protobuf message")


def _varint(data: Data, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("no protobuf number")
