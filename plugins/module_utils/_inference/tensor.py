# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensors of the Open Inference Protocol v2 and their forms on the wire, with the standard library alone.

The raw form is the one of the binary tensor data extension and of gRPC's raw contents: elements in row-major order,
little-endian, without padding; a BYTES element is its length as an unsigned 32-bit integer and then its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

Value = Union[bool, int, float, bytes]

# Format characters of the struct module. BYTES has none: its elements vary in size.
FORMATS: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*FORMATS, "BYTES")
FLOATING = ("FP16", "FP32", "FP64")


@dataclass(frozen=True)
class Tensor:
    """A named tensor with its elements in raw form.

    Parameters
    ----------
    name : str
        Name of the model's input or output.
    datatype : str
        One of `DATATYPES`.
    shape : tuple of int
        Size of each dimension, all known.
    raw : bytes
        The elements in raw form (see the module's description).

    Raises
    ------
    ValueError
        The datatype is unknown, or `raw` does not hold as many elements as the shape says.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"tensor '{self.name}' has the unknown datatype {self.datatype!r}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"tensor '{self.name}' has a negative size in its shape {list(self.shape)}")
        wanted = math.prod(self.shape)
        if self.datatype == "BYTES":
            found: float = len(_split(self.name, self.raw))
        else:
            found = len(self.raw) / struct.calcsize(FORMATS[self.datatype])
        if found != wanted:
            raise ValueError(
                f"tensor '{self.name}' has {found:g} elements, but {wanted} by its shape {list(self.shape)}"
            )

    @classmethod
    def from_values(cls, name: str, datatype: str, shape: Iterable[int], values: Iterable[Any]) -> Tensor:
        """Make a tensor of a flat sequence of elements; BYTES elements are `bytes`.

        Raises
        ------
        ValueError
            The datatype is unknown, a value does not fit it, or the number of values does not fit the shape.
        """
        elements = list(values)
        if datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
        elif datatype in FORMATS:
            try:
                raw = struct.pack(f"<{len(elements)}{FORMATS[datatype]}", *elements)
            except (struct.error, OverflowError) as error:
                raise ValueError(f"a value of tensor '{name}' is not of datatype {datatype}: {error}") from error
        else:
            raise ValueError(f"tensor '{name}' has the unknown datatype {datatype!r}")
        return cls(name, datatype, tuple(shape), raw)

    @classmethod
    def zeros(cls, name: str, datatype: str, shape: Iterable[int]) -> Tensor:
        """Make a tensor of zeros, false values or empty byte strings."""
        sizes = tuple(shape)
        zero = b"" if datatype == "BYTES" else 0
        return cls.from_values(name, datatype, sizes, [zero] * math.prod(sizes))

    @classmethod
    def from_json(cls, document: Any) -> Tensor:
        """Make a tensor of its JSON form with `name`, `shape`, `datatype` and `data` (flat or nested).

        BYTES elements are strings, taken as UTF-8. A null is a NaN where the datatype is floating: JSON has no NaN, and
        servers write null instead.

        Raises
        ------
        ValueError
            A key is missing or has the wrong type, or a value does not fit.
        """
        if not isinstance(document, dict):
            raise ValueError(f"a tensor must be a JSON object, not {type(document).__name__}")
        for key, kind in (("name", str), ("datatype", str), ("shape", list), ("data", list)):
            if not isinstance(document.get(key), kind):
                raise ValueError(f"tensor {document.get('name')!r} has no valid '{key}'")
        name, datatype, shape = document["name"], document["datatype"], document["shape"]
        if not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
            raise ValueError(f"tensor '{name}' has the shape {shape}, not a list of whole numbers")
        values = list(_flat(document["data"]))
        if datatype == "BYTES":
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f"tensor '{name}' of datatype BYTES has an element that is not a string")
            values = [value.encode() for value in values]
        elif datatype == "BOOL":
            if not all(value in (0, 1) for value in values):
                raise ValueError(f"tensor '{name}' of datatype BOOL has an element that is neither true nor false")
        elif datatype in FLOATING:
            values = [math.nan if value is None else value for value in values]
        return cls.from_values(name, datatype, shape, values)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form with flat `data`.

        Raises
        ------
        ValueError
            An element cannot be written in JSON: not a finite number, or not UTF-8.
        """
        values: Sequence[Any] = self.values()
        if self.datatype == "BYTES":
            values = [value.decode() for value in values]
        elif self.datatype in FLOATING and not all(map(math.isfinite, values)):
            raise ValueError(f"tensor '{self.name}' has an element that is not finite, which JSON cannot express")
        return {"name": self.name, "shape": list(self.shape), "datatype": self.datatype, "data": values}

    def values(self) -> list[Value]:
        """Return the elements as a flat list in row-major order."""
        if self.datatype == "BYTES":
            return list(_split(self.name, self.raw))
        return list(struct.unpack(f"<{math.prod(self.shape)}{FORMATS[self.datatype]}", self.raw))


def _split(name: str, raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor in raw form."""
    elements = []
    position = 0
    while position < len(raw):
        start = position + 4
        if start > len(raw):
            raise ValueError(f"tensor '{name}' ends within the length of a BYTES element")
        position = start + int.from_bytes(raw[position:start], "little")
        if position > len(raw):
            raise ValueError(f"tensor '{name}' ends within a BYTES element")
        elements.append(raw[start:position])
    return elements


def _flat(data: list[Any]) -> Iterable[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item
