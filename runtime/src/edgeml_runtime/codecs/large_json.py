# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Large JSON bodies: the numbers of a tensor become an array at once, never Python objects one by one.

Means the same as orjson and tensors.from_values: whatever is not plainly numbers goes through them.
"""

from typing import Any, Literal

import numpy as np
import orjson
import simdjson

from edgeml_runtime.tensors import DTYPES, Array, TensorSpec, check_count, from_values

# simdjson's buffers by the kind of dtype: double, signed and unsigned 64-bit.
BUFFERS: dict[str, tuple[Literal["d", "i", "u"], np.dtype[Any]]] = {
    "f": ("d", np.dtype("<f8")),
    "i": ("i", np.dtype("<i8")),
    "u": ("u", np.dtype("<u8")),
}

# Bytes of a document up to which the parser's memory, some four times as much, stays for the next one.
_KEPT = 2 << 20
_STEP = 32 * 1024

_parser = simdjson.Parser()


class Numbers:
    """The value of a "data": still simdjson's; ``nesting`` is the shape that its lists have."""

    __slots__ = ("_array", "nesting")

    def __init__(self, array: simdjson.Array) -> None:
        self._array = array
        self.nesting = _nesting(array)

    @property
    def lists(self) -> int:
        """How many lists the nesting has."""
        lists = width = 1
        for size in self.nesting[:-1]:
            width *= size
            lists += width
        return lists

    def tensor(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        """See tensors.from_values."""
        dtype = DTYPES[spec.datatype]
        kind = BUFFERS.get(dtype.kind)
        if kind is None or (len(self.nesting) > 1 and self.nesting != shape):
            return from_values(spec, shape, self._array.as_list())
        try:
            wide = np.frombuffer(self._array.as_buffer(of_type=kind[0]), kind[1])
            check_count(spec, shape, len(wide))
            with np.errstate(over="raise"):
                narrow = wide.astype(dtype, copy=False)
            if dtype.kind == "f" or np.array_equal(wide, narrow):
                return narrow.reshape(shape)
        except (TypeError, ValueError, FloatingPointError):
            pass  # other values than numbers of that kind, or out of range: let the usual path say which
        return from_values(spec, shape, self._array.as_list())


def loads(text: bytes | bytearray | memoryview) -> Any:
    """As orjson.loads, but with Numbers in the "data" of inputs. Raises orjson.JSONDecodeError."""
    document = None if _count(text, b"\\") else _loads(text)
    return orjson.loads(text) if document is None else document


def _loads(text: bytes | bytearray | memoryview) -> dict[str, Any] | None:
    try:
        root = _parse(text)
        document = _members(root, "inputs")
        if document is None:
            return None
        if isinstance(document.get("inputs"), simdjson.Array):
            tensors = [_members(tensor, "data") for tensor in document["inputs"]]
            if None in tensors:
                return None
            document["inputs"] = tensors
            for tensor in tensors:
                if tensor is not None and isinstance(tensor.get("data"), simdjson.Array):
                    tensor["data"] = Numbers(tensor["data"])
    except (ValueError, TypeError, RuntimeError, RecursionError):
        return None
    # Nesting was read off the first elements: one bracket more or less anywhere, and it is another.
    return document if _count(text, b"[") == _lists(document) else None


def _parse(text: bytes | bytearray | memoryview) -> Any:
    """Parse with memory that was used before: new pages cost more than parsing does."""
    global _parser
    if len(text) > _KEPT:
        return simdjson.Parser().parse(text)
    try:
        return _parser.parse(text)
    except RuntimeError:  # something still refers to its last document
        _parser = simdjson.Parser()
        return _parser.parse(text)


def _count(text: bytes | bytearray | memoryview, character: bytes) -> int:
    octets = np.frombuffer(text, np.uint8)
    steps = range(0, len(octets), _STEP)
    return sum(int(np.count_nonzero(octets[start : start + _STEP] == ord(character))) for start in steps)


def _members(value: Any, lazy: str) -> dict[str, Any] | None:
    """The members of an object, the one named ``lazy`` as it is; None when it is none or has one twice."""
    if not isinstance(value, simdjson.Object):
        return None
    keys = list(value.keys())
    if len(set(keys)) != len(keys):
        return None
    return {key: value[key] if key == lazy else _plain(value[key]) for key in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _nesting(array: Any) -> tuple[int, ...]:
    """The sizes of lists in lists. Raises ValueError or TypeError where they are not even."""
    size = len(array)
    if not size or not isinstance(array[0], simdjson.Array):
        return (size,)
    if len(array[0]) and isinstance(array[0][0], simdjson.Array):
        inner = {_nesting(part) for part in array}
    else:
        inner = {(len(part),) for part in array}
    if len(inner) > 1:
        raise ValueError  # uneven
    return (size, *inner.pop())


def _lists(value: Any) -> int:
    if isinstance(value, Numbers):
        return value.lists
    if isinstance(value, dict):
        return sum(map(_lists, value.values()))
    return 1 + sum(map(_lists, value)) if isinstance(value, list) else 0
