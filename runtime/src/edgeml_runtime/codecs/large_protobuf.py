# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Large ModelInferRequests: the tensors' content is taken where it lies, and protobuf reads only what is around it.

protobuf makes an object of each field before anybody can count them: 15 MiB of empty tensors would become 800 MB, and
nothing else would run meanwhile. See "Encoding" of the documentation of Protocol Buffers.
"""

from collections.abc import Iterator

import numpy as np

from edgeml_runtime.codecs.request import check_tensor_count
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec, check_count, from_repeated

#: Bytes of a message without the content of tensors.
MOST_AROUND = 256 * 1024
#: Fields of a message and of its input tensors, and of one tensor's packed contents.
MOST_FIELDS = 2048

_VARINT, _FIXED64, _BYTES, _GROUP, _END_OF_GROUP, _FIXED32 = range(6)
_INPUTS, _OUTPUTS, _RAW = 5, 6, 7  # of ModelInferRequest
_CONTENTS = 5  # of InferInputTensor
# Fields of InferTensorContents by dtype; the smaller integers have those of 32 bits.
_FIELD_OF = {"b": 1, "f4": 6, "f8": 7, "O": 8, "i8": 3, "u8": 5}
_VARINTS = range(1, 6)  # the fields of packed varints
_FIXED_SIZES = {6: 4, 7: 8}
_WINDOW = 64 * 1024
_LONGEST_VARINT = 10
# As protobuf's own parser has them: keys and lengths are of 32 bits, and messages and groups are 100 deep at most.
_LONGEST_KEY, _KEYS = 5, 1 << 32
_DEEPEST, _CONTENTS_DEPTH = 100, 2

Contents = memoryview | None


def split(body: memoryview, limits: Limits) -> tuple[bytes, list[memoryview], list[Contents]]:
    """What is around the content of tensors, the raw contents, and the typed contents of each input.

    Raises RequestError: invalid, too large for more tensors or other parts than allowed.
    """
    rest: list[bytes | memoryview] = []
    raw: list[memoryview] = []
    contents: list[Contents] = []
    outputs = around = 0
    budget = [MOST_FIELDS]
    for number, kind, start, content, end in _fields(body, budget):
        if number == _RAW and kind == _BYTES:
            raw.append(body[content:end])
            check_tensor_count(len(raw), limits)
            continue
        part: bytes | memoryview = body[start:end]
        if number == _INPUTS and kind == _BYTES:
            part, typed = _without_contents(body[content:end], budget)
            contents.append(typed)
            check_tensor_count(len(contents), limits)
        elif number == _OUTPUTS and kind == _BYTES:
            outputs += 1
            check_tensor_count(outputs, limits)
        around += len(part)
        if around > MOST_AROUND:
            message = f"the message without the content of tensors is larger than {MOST_AROUND} bytes"
            raise RequestError(Failure.TOO_LARGE, message)
        rest.append(part)
    return b"".join(rest), raw, contents


def _without_contents(tensor: memoryview, budget: list[int]) -> tuple[bytes, Contents]:
    """The field of an input tensor without its contents, and these."""
    rest: list[memoryview] = []
    found: list[memoryview] = []
    size = 0
    for number, kind, start, content, end in _fields(tensor, budget):
        if number == _CONTENTS and kind == _BYTES:
            found.append(tensor[content:end])
        else:
            size += end - start
            if size > MOST_AROUND:
                return bytes(size), None  # the caller refuses it
            rest.append(tensor[start:end])
    if found:
        rest.append(memoryview(b"\x2a\x00"))  # that there are contents is to be seen
    text = b"".join(rest)
    # A field that comes twice is merged, and merging messages is joining them.
    typed = found[0] if len(found) == 1 else memoryview(b"".join(found)) if found else None
    return b"\x2a" + varint(len(text)) + text, typed


def varint(value: int) -> bytes:
    """A number as protobuf writes it, see "Base 128 Varints" of its encoding."""
    if value < 128:
        return value.to_bytes(1, "little")
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fields(body: memoryview, budget: list[int], depth: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the content and end of each field; ``budget`` of them at most.

    ``depth``: messages around this one. Raises RequestError: invalid, too large.
    """
    position = 0
    while position < len(body):
        start = position
        number, kind, content = _read_key(body, position, budget)
        if not number:
            raise _damaged()
        if kind == _GROUP:
            position = _end_of_group(body, content, number, budget, depth)
        else:
            content, position = _read_value(body, content, kind)
        yield number, kind, start, content, position


def _read_key(body: memoryview, position: int, budget: list[int]) -> tuple[int, int, int]:
    """Number and wire type of the field, and the position after them."""
    budget[0] -= 1
    if budget[0] < 0:
        raise RequestError(Failure.TOO_LARGE, "the message has more fields than are allowed")
    key, position = _read_varint(body, position, _LONGEST_KEY)
    if key >= _KEYS:
        raise _damaged()
    return key >> 3, key & 7, position


def _read_value(body: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Start and end of the content of a field that is not a group."""
    if kind == _BYTES:
        length, position = _read_varint(body, position, _LONGEST_KEY)
        end = position + length
    elif kind == _VARINT:
        _, end = _read_varint(body, position)
    elif kind in (_FIXED32, _FIXED64):
        end = position + (4 if kind == _FIXED32 else 8)
    else:
        raise _damaged()
    if end > len(body):
        raise _damaged()
    return position, end


def _end_of_group(body: memoryview, position: int, number: int, budget: list[int], depth: int) -> int:
    """The position after the group; no message of this protocol has one, so that all are skipped as unknown fields."""
    groups = [number]
    while groups:
        if depth + len(groups) > _DEEPEST:
            raise _damaged()
        number, kind, position = _read_key(body, position, budget)
        if kind == _GROUP:
            groups.append(number)
        elif kind != _END_OF_GROUP:
            _, position = _read_value(body, position, kind)
        elif number != groups.pop():
            raise _damaged()
    return position


def _read_varint(body: memoryview, position: int, longest: int = _LONGEST_VARINT) -> tuple[int, int]:
    value = shift = 0
    while position < len(body) and shift < 7 * longest:
        octet = body[position]
        position += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, position
        shift += 7
    raise _damaged()


def _damaged() -> RequestError:
    return invalid("the request is not a ModelInferRequest")


def read_contents(spec: TensorSpec, shape: tuple[int, ...], contents: memoryview) -> Array:
    """The tensor of typed contents. Raises RequestError (invalid)."""
    dtype = DTYPES[spec.datatype]
    field = _field(dtype)
    if dtype.kind == "O":
        return from_repeated(spec, shape, [bytes(each) for each in _elements(spec, shape, contents)])
    # What is not packed is a field for each element, of the same octets.
    unpacked = {6: _FIXED32, 7: _FIXED64}.get(field, _VARINT)
    parts: list[Array] = []
    count = 0
    for number, kind, _start, content, end in _fields(contents, [MOST_FIELDS], _CONTENTS_DEPTH):
        if number != field or kind not in (_BYTES, unpacked):
            _check_unused(number, kind, contents[content:end])
            continue
        part = contents[content:end]
        if dtype.kind == "f":
            if len(part) % dtype.itemsize:
                raise _damaged()
            parts.append(np.frombuffer(part, dtype))
        else:
            parts += _integers(spec, part)
        count = sum(map(len, parts))
    check_count(spec, shape, count)
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype)])
    if not whole.flags.aligned:
        whole = whole.copy()
    return from_repeated(spec, shape, whole)


def _field(dtype: np.dtype[np.generic]) -> int:
    if dtype.kind in "iu" and dtype.itemsize < 8:
        return 2 if dtype.kind == "i" else 4
    return _FIELD_OF[dtype.kind if dtype.kind in "bO" else dtype.str[1:]]


def _elements(spec: TensorSpec, shape: tuple[int, ...], contents: memoryview) -> list[memoryview]:
    found: list[memoryview] = []
    count = 1
    for size in shape:
        count *= size
    for number, kind, _start, content, end in _fields(contents, [count + MOST_FIELDS], _CONTENTS_DEPTH):
        if number != _FIELD_OF["O"]:
            _check_unused(number, kind, contents[content:end])
        elif kind == _BYTES:
            found.append(contents[content:end])
            if len(found) > count:
                raise invalid(f"input '{spec.name}': more than {count} elements, shape {list(shape)} needs {count}")
    return found


def _check_unused(number: int, kind: int, part: memoryview) -> None:
    """Refuse what a parser of the whole message refuses, in contents of another datatype."""
    if kind != _BYTES:
        return
    if number in _VARINTS:
        for _ in _varints(part):
            pass
    elif len(part) % _FIXED_SIZES.get(number, 1):
        raise _damaged()


def _varints(packed: memoryview) -> Iterator[tuple[Array, Array, Array]]:
    """Packed varints in portions: octets, where each begins in them, and lengths. Raises RequestError (invalid)."""
    position = 0
    while position < len(packed):
        octets = np.frombuffer(packed[position : position + _WINDOW], np.uint8)
        ends = np.flatnonzero(octets < 128)
        if not len(ends):
            raise _damaged()
        starts = np.concatenate((np.zeros(1, ends.dtype), ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > _LONGEST_VARINT:
            raise _damaged()
        position += int(ends[-1]) + 1
        yield octets, starts, lengths


def _integers(spec: TensorSpec, packed: memoryview) -> Iterator[Array]:
    """Varints in portions, as their type in the message has them."""
    dtype = DTYPES[spec.datatype]
    for octets, starts, lengths in _varints(packed):
        values = (octets[starts] & 127).astype(np.uint64)
        for index in range(1, int(lengths.max())):
            longer = lengths > index
            more = (octets[starts[longer] + index] & 127).astype(np.uint64) << np.uint64(7 * index)
            values[longer] |= more
        if dtype.kind == "b":
            yield values != 0
        elif dtype.kind == "i":
            yield _narrow(spec, values.view(np.int64) if dtype.itemsize == 8 else values.astype(np.int32))
        else:
            yield _narrow(spec, values if dtype.itemsize == 8 else values.astype(np.uint32))


def _narrow(spec: TensorSpec, wide: Array) -> Array:
    narrow = wide.astype(DTYPES[spec.datatype])
    if not np.array_equal(wide, narrow):
        raise invalid(f"input '{spec.name}': contents hold values out of the range of {spec.datatype}")
    return narrow
