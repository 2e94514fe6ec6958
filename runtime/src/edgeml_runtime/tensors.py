# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of the Open Inference Protocol as numpy arrays.

One array per tensor, C-contiguous, little-endian. BYTES are arrays of dtype object whose elements are
``str``, since ONNX strings are UTF-8, or ``bytes`` where a model declares them raw. See section
"Tensor Data Types" of the specification.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeml_runtime.errors import invalid

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}

# Exact types: in Python a bool is an int, in the protocol it is not.
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}

_LENGTH = struct.Struct("<I")
_LARGEST_DIMENSION = 2**63 - 1
_MOST_DIMENSIONS = 64  # of a numpy array


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model.

    ``shape`` has -1 for a dimension of any size; it is empty for scalars and for tensors of any rank.
    ``raw``: elements of BYTES are ``bytes`` of any content, not text.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bool = False

    def check(self, datatype: object, shape: object) -> tuple[int, ...]:
        """The shape of a tensor that a client sent, as a tuple.

        Raises RequestError (invalid) when datatype or shape do not fit the model.
        """
        if datatype != self.datatype:
            raise invalid(f"input '{self.name}': datatype {datatype!r}, the model takes {self.datatype}")
        if type(shape) is not list:
            raise invalid(f"input '{self.name}': 'shape' must be a list of integers")
        if len(shape) > _MOST_DIMENSIONS:
            raise invalid(f"input '{self.name}': {len(shape)} dimensions, at most {_MOST_DIMENSIONS} are possible")
        for dimension in shape:
            if type(dimension) is not int or not 0 <= dimension <= _LARGEST_DIMENSION:
                raise invalid(f"input '{self.name}': shape {shape} has an entry that is no size")
        if not self.fits(shape):
            raise invalid(f"input '{self.name}': shape {shape}, the model takes {list(self.shape)} (-1: any size)")
        return tuple(shape)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of the model may have that shape."""
        wanted = self.shape
        if wanted and len(shape) != len(wanted):
            return False
        for size, seen in zip(wanted, shape, strict=False):  # noqa: SIM110  # a generator costs twice as much
            if size not in (-1, seen):
                return False
        return True

    def zeros(self, shape: tuple[int, ...] = ()) -> Array:
        """A tensor of zeros (empty strings), of the given shape or with 1 for dimensions of any size."""
        sizes = shape or tuple(1 if size == -1 else size for size in self.shape)
        return (
            np.full(sizes, b"" if self.raw else "", dtype=object)
            if self.datatype == "BYTES"
            else np.zeros(sizes, DTYPES[self.datatype])
        )


def from_values(spec: TensorSpec, shape: tuple[int, ...], values: object) -> Array:
    """A tensor from JSON values, a flat list in row-major order or lists nested as ``shape`` says.

    Raises RequestError (invalid) for a wrong count, nesting, type or a value out of range.
    """
    if type(values) is not list:
        raise invalid(f"input '{spec.name}': 'data' must be a list")
    flat: list[Any] = values
    nesting: list[int] = []
    while flat and type(flat[0]) is list:
        width = len(flat[0])
        if any(type(row) is not list or len(row) != width for row in flat):
            raise invalid(f"input '{spec.name}': 'data' is nested unevenly")
        nesting.append(width)
        flat = list(chain.from_iterable(flat))
    if nesting and (len(values), *nesting) != shape:
        raise invalid(f"input '{spec.name}': 'data' is nested as {[len(values), *nesting]}, its shape is {list(shape)}")
    check_count(spec, shape, len(flat))
    return _reshape(spec, from_flat(spec, flat), shape)


def from_flat(spec: TensorSpec, flat: list[Any]) -> Array:
    """JSON values as an array of one dimension; null is NaN for floating datatypes. Raises RequestError (invalid)."""
    dtype = DTYPES[spec.datatype]
    allowed = _JSON_TYPES[dtype.kind]
    if not allowed.issuperset(map(type, flat)):
        if dtype.kind == "f":
            flat = [math.nan if value is None else value for value in flat]
        if not allowed.issuperset(map(type, flat)):
            raise invalid(f"input '{spec.name}': 'data' holds values that are not {spec.datatype}")
    try:
        if dtype.kind == "f":
            # Refuses what is out of range; numpy would do so only within an errstate, which costs more than the rest.
            packed = struct.pack(f"<{len(flat)}{dtype.char}", *flat)
            return np.frombuffer(packed, dtype)
        if spec.raw:
            flat = [text.encode(errors="surrogatepass") for text in flat]
        return np.array(flat, dtype=dtype)
    except (OverflowError, struct.error):
        raise invalid(f"input '{spec.name}': 'data' holds values out of the range of {spec.datatype}") from None


def from_repeated(spec: TensorSpec, shape: tuple[int, ...], values: Sequence[Any] | Array) -> Array:
    """A tensor from typed values of a wider or equal type; BYTES from ``bytes`` in UTF-8.

    Raises RequestError (invalid) for a wrong count or a value out of range.
    """
    check_count(spec, shape, len(values))
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":
        return _reshape(spec, _strings(spec, list(values)), shape)
    wide = np.asarray(values)
    if wide.dtype == dtype:
        return _reshape(spec, wide, shape)
    narrow = wide.astype(dtype)
    if not np.array_equal(wide, narrow):
        raise invalid(f"input '{spec.name}': contents hold values out of the range of {spec.datatype}")
    return _reshape(spec, narrow, shape)


def from_raw(spec: TensorSpec, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """A tensor from raw bytes, without a copy where they are aligned.

    Raises RequestError (invalid) when the number of bytes does not fit the shape.
    """
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":
        elements = _split(spec, memoryview(raw))
        check_count(spec, shape, len(elements))
        return _reshape(spec, _strings(spec, elements), shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise invalid(f"input '{spec.name}': {len(raw)} bytes, shape {list(shape)} needs {expected}")
    if dtype.kind == "b":
        # Any byte but zero is true; the engine must only ever see 0 and 1.
        return _reshape(spec, np.frombuffer(raw, np.uint8) != 0, shape)
    array = np.frombuffer(raw, dtype)
    if not array.flags.aligned:
        array = array.copy()
    return _reshape(spec, array, shape)


def byte_size(array: Array) -> int:
    """Bytes that a tensor takes in memory, roughly when it is BYTES."""
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype.kind == "O" else 0)


def to_raw(array: Array) -> bytes | memoryview:
    """The bytes of a tensor, without a copy unless it is BYTES or not contiguous."""
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).data.cast("B") if array.size else b""
    parts: list[bytes] = []
    for element in array.flat:
        encoded = element if type(element) is bytes else element.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def to_values(array: Array) -> Any:
    """A tensor as a flat list in row-major order, in a form that orjson writes."""
    flat = array.reshape(-1)
    if array.dtype.kind != "O":
        return np.ascontiguousarray(flat)
    values = flat.tolist()
    if bytes not in set(map(type, values)):
        return values
    try:
        return [str(value, "utf-8") for value in values]
    except UnicodeDecodeError:
        raise invalid("an output holds bytes that JSON cannot carry; ask for it in binary (binary_data)") from None


def check_count(spec: TensorSpec, shape: tuple[int, ...], count: int) -> None:
    """Raises RequestError (invalid) when a shape needs another number of elements."""
    expected = math.prod(shape)
    if count != expected:
        raise invalid(f"input '{spec.name}': {count} elements, shape {list(shape)} needs {expected}")


def _reshape(spec: TensorSpec, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # too many dimensions, or a huge one beside a zero
        raise invalid(f"input '{spec.name}': shape {list(shape)} is beyond what a tensor can have") from None


def _split(spec: TensorSpec, raw: memoryview) -> list[memoryview]:
    elements = []
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        if start > len(raw):
            raise invalid(f"input '{spec.name}': BYTES end within the length of an element")
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > len(raw):
            raise invalid(f"input '{spec.name}': BYTES end within an element")
        elements.append(raw[start:position])
    return elements


def _strings(spec: TensorSpec, elements: Sequence[bytes | memoryview]) -> Array:
    array = np.empty(len(elements), dtype=object)
    if spec.raw:
        for index, element in enumerate(elements):
            array[index] = bytes(element)
        return array
    try:
        for index, element in enumerate(elements):
            array[index] = str(element, "utf-8")
    except UnicodeDecodeError:
        raise invalid(f"input '{spec.name}': BYTES must be UTF-8 for this model") from None
    return array
