# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""JSON bodies of any size in portions: first what is around the tensors' "data", then their values, part by part.

A body of megabytes takes tenths of a second and many times its size when a parser makes objects of it, and no other
thread runs meanwhile. Here no step takes longer than a few milliseconds, a thread can do it beside the event loop, and
what is not a request (seven million empty tensors) is refused before any object is made of it.
"""

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import orjson
import simdjson

from edgeml_runtime.codecs.large_json import BUFFERS
from edgeml_runtime.codecs.request import check_tensor_count
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import Failure, RequestError, invalid
from edgeml_runtime.memory import forget
from edgeml_runtime.tensors import DTYPES, Array, TensorSpec, from_flat, from_values

#: Bytes of all that is around the values of tensors: names, shapes, parameters.
MOST_AROUND = 256 * 1024
_WINDOW = 64 * 1024
# Values of a size that the usual way reads as fast; it also says best what is wrong with them.
_SMALL = 32 * 1024
# Lists of values, and bytes of those that no tensor has, since a name is given twice.
_MOST_LISTS, _MOST_UNREAD = 4096, 64 * 1024
# Objects and lists in one another, as the parser allows them.
_MOST_DEPTH = 1024
# White bytes between brackets of nested lists.
_MOST_WHITE = 200
_MOST_PLAIN = 3 << 20
# Bytes whose memory goes back to the system at once.
_FORGOTTEN = 1 << 20

_TWICE = "a name is given twice: 'inputs', or the 'data' of a tensor"
# A string that does not end is one token: looking for each one's end anew would take a square of the time.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}:,]|[^\s"\[\]{}:,]+', re.DOTALL)
_BEGINNING = re.compile(rb"[^ \t\r\n]")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _COMMA, _OPEN, _CLOSE, _SPACE = b'",[] '
# What is open where the keys of a tensor stand.
_IN_TENSOR = list(b"{[{")
_NO_STRUCTURE = bytes(set(range(256)) - {_COMMA, _OPEN, _CLOSE})


def _table(octets: bytes) -> Array:
    table = np.zeros(256, bool)
    table[list(octets)] = True
    return table


_WHITE = _table(b"\t\n\r ")
_MAY_PRECEDE, _MAY_FOLLOW = _table(b"[,"), _table(b"],")


def is_plain(text: bytes | bytearray | memoryview, limits: Limits) -> bool:
    """Whether a body of some megabytes is as clients write tensors: few objects, lists and strings.

    What other parsers do with such a body at once takes few milliseconds.
    """
    if len(text) > _MOST_PLAIN:
        return False
    view = memoryview(text)
    objects = lists = quotes = 0
    for start in range(0, len(view), _WINDOW):
        window = bytes(view[start : start + _WINDOW])
        objects += window.count(b"{")
        quotes += window.count(b'"')
        lists += window.count(b"[")
        if (
            b"\\" in window
            or objects > 4 * limits.tensors
            or quotes > 32 * limits.tensors
            or 64 * lists > len(view) + 64 * _WINDOW
        ):
            return False
    return 64 * lists <= len(view)


def loads(body: bytes | bytearray | memoryview, limits: Limits) -> Any:
    """As orjson.loads, but with Values in the "data" of inputs.

    The body is not copied: Values read it where it lies, once, and its memory goes as they do.
    Raises orjson.JSONDecodeError, and RequestError: invalid, too large for more tensors or other parts than allowed.
    """
    text = memoryview(body)
    around, found = _around(text, limits)
    document = orjson.loads(around)
    tensors = document.get("inputs") if type(document) is dict else None
    unread = dict(enumerate(found))
    for tensor in tensors if type(tensors) is list else ():
        if type(tensor) is dict and type(tensor.get("data")) is int:
            tensor["data"] = unread.pop(tensor["data"])
    _check_unread(unread.values())
    return document


def _check_unread(values: Collection["Values"]) -> None:
    """Of a name that is given twice the last value counts (RFC 8259, section 4); the others have to be JSON as well."""
    if sum(map(len, values)) > _MOST_UNREAD:
        raise invalid(_TWICE)
    for one in values:
        orjson.loads(one.text())


def _around(text: memoryview, limits: Limits) -> tuple[bytes, list["Values"]]:
    """The text with a number in the place of each tensor's values, and these."""
    found: list[Values] = []
    parts: list[bytes | memoryview] = []
    size = position = tensors = 0
    open_ones: list[int] = []
    keys: list[bytes] = [b""]  # of the objects that are open; the last string seen
    expects_value = False
    while position < len(text):
        start = position
        end = min(len(text), start + MOST_AROUND - size)
        resumed = False
        for token in _TOKEN.finditer(text, start, end):
            first = text[token.start()]
            in_tensor = open_ones == _IN_TENSOR and keys[1] == b'"inputs"'
            if first == _QUOTE:
                if expects_value:
                    expects_value = False
                    if in_tensor and _is_data(keys[-1]):
                        raise invalid("'data' must be a list")
                else:
                    keys[-1] = token[0] if b"\\" not in token[0] else _unescaped(token[0])
            elif first in b"{[":
                if in_tensor and expects_value and _is_data(keys[-1]):
                    if first != _OPEN:
                        raise invalid("'data' must be a list")
                    parts += (text[start : token.start()], b" %d " % len(found))
                    size += token.start() - start
                    position = _end_of(text, token.start())
                    found.append(Values(text, token.start(), position))
                    if len(found) > _MOST_LISTS:
                        raise invalid(_TWICE)
                    expects_value = False
                    resumed = True
                    break
                if first == _IN_TENSOR[2] and open_ones == _IN_TENSOR[:2] and keys[1] == b'"inputs"':
                    tensors += 1
                    check_tensor_count(tensors, limits)
                open_ones.append(first)
                if len(open_ones) > _MOST_DEPTH:
                    raise invalid(f"the body is nested deeper than {_MOST_DEPTH} levels")
                keys.append(b"")
                expects_value = first == _OPEN
            elif first in b"}]":
                if open_ones:
                    open_ones.pop()
                    keys.pop()
                expects_value = False
            elif first == 58:
                expects_value = True
            elif first == _COMMA:
                expects_value = bool(open_ones) and open_ones[-1] == _OPEN
            else:
                if in_tensor and expects_value and _is_data(keys[-1]):
                    raise invalid("'data' must be a list")
                expects_value = False
        if not resumed:
            if end < len(text):
                message = f"the JSON around the values of tensors is larger than {MOST_AROUND} bytes"
                raise RequestError(Failure.TOO_LARGE, message)
            parts.append(text[start:])
            break
    return b"".join(parts), found


def _is_data(key: bytes) -> bool:
    return key == b'"data"'


def _unescaped(string: bytes) -> bytes:
    try:
        return b'"%b"' % str(orjson.loads(string)).encode()
    except ValueError:
        return string  # the parser refuses it later


def _end_of(text: memoryview, start: int) -> int:
    """Where the array that begins at ``start`` has ended. Raises RequestError (invalid)."""
    depth = 0
    position = start
    is_inside = False
    size = 64
    while position < len(text):
        size = min(4 * size, _WINDOW)  # many short ones take no longer than one that is long
        window = bytes(text[position : position + size])
        if window.endswith(b"\\"):  # what it escapes belongs to it
            window = bytes(text[position : position + size + _odd_backslashes(window)])
        if position != start and not is_inside and b'"' not in window and depth > window.count(b"]"):
            depth += window.count(b"[") - window.count(b"]")  # it cannot end here
            position += len(window)
            continue
        octets, strings = _strings(window, is_inside)
        brackets = _brackets(octets, strings)
        depths = depth + np.cumsum(92 - octets[brackets].astype(np.int64))  # 91 opens, 93 closes
        ends = np.flatnonzero(depths == 0)
        if len(ends):
            return position + int(brackets[ends[0]]) + 1
        if len(depths):
            depth = int(depths[-1])
        is_inside ^= bool(np.count_nonzero(octets == _QUOTE) % 2)
        position += len(window)
    raise invalid("the body is not valid JSON: it ends within a list")


def _odd_backslashes(window: bytes) -> int:
    return (len(window) - len(window.rstrip(b"\\"))) % 2


def _strings(window: bytes, is_inside: bool) -> tuple[Array, Array | None]:
    """The bytes of a window without escapes, and which of them are in strings; None when none are."""
    if b"\\" in window:
        window = _ESCAPE.sub(b"__", window)
    octets = np.frombuffer(window, np.uint8)
    if not is_inside and b'"' not in window:
        return octets, None
    quotes = octets == _QUOTE
    inside = np.logical_xor.accumulate(quotes)
    return octets, (~inside if is_inside else inside) | quotes


def _brackets(octets: Array, strings: Array | None) -> Array:
    """Where brackets of lists are."""
    found = np.flatnonzero((octets == _OPEN) | (octets == _CLOSE))
    return found if strings is None else found[~strings[found]]


class Values:
    """The value of a "data": a list of values, flat or nested, to be read once."""

    __slots__ = ("_end", "_start", "_text")

    def __init__(self, text: memoryview, start: int, end: int) -> None:
        self._text = text
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def text(self) -> memoryview:
        """The list as it was sent."""
        return self._text[self._start : self._end]

    def tensor(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        """See tensors.from_values."""
        count = math.prod(shape)
        if len(self) <= _SMALL:
            try:
                return from_values(spec, shape, orjson.loads(self.text()))
            except orjson.JSONDecodeError as error:
                raise invalid(f"the body is not valid JSON: {error}") from None
        if 2 * count - 1 > len(self) - 2 or not count:  # a value has a byte, and a comma
            raise invalid(f"input '{spec.name}': 'data' has not the elements that shape {list(shape)} needs: {count}")
        result = np.empty(count, DTYPES[spec.datatype])
        filled = 0
        parser = simdjson.Parser()
        for flat in self._portions(spec, shape):
            part = _read(spec, flat, parser)
            if filled + len(part) > count:
                raise invalid(f"input '{spec.name}': more than {count} elements, shape {list(shape)} needs {count}")
            result[filled : filled + len(part)] = part
            filled += len(part)
            del part  # it may refer to the parser, which is used again
        if filled != count:
            raise invalid(f"input '{spec.name}': {filled} elements, shape {list(shape)} needs {count}")
        return result.reshape(shape)

    def _portions(self, spec: TensorSpec, shape: tuple[int, ...]) -> Iterator[bytes]:
        """Texts of values with commas between them, in their order; nested lists are checked and made flat."""
        text, position, last = self._text, self._start + 1, self._end - 1
        beginning = _BEGINNING.search(text, position)
        is_nested = beginning is not None and beginning[0] == b"["
        expected = _structure(shape) if is_nested else b""
        checked = 0
        size = _WINDOW
        kept = position  # what is before it has been read, and its memory is gone
        while True:
            if position - kept >= _FORGOTTEN:
                forget(text[kept:position])
                kept = position
            window = bytes(text[position : min(last, position + size)])
            is_last = position + size >= last
            if not is_last:
                window = window[: len(window) - _odd_backslashes(window)]
            octets, strings = _strings(window, False)
            if not is_last:
                if strings is None:
                    cut = window.rfind(b",")
                else:
                    commas = np.flatnonzero(octets == _COMMA)
                    commas = commas[~strings[commas]]
                    cut = int(commas[-1]) if len(commas) else -1
                if cut < 0:  # one long value
                    size *= 2
                    continue
                window, octets, strings = window[:cut], octets[:cut], strings if strings is None else strings[:cut]
            size = _WINDOW
            position += len(window) + 1
            brackets = _brackets(octets, strings)
            if is_nested:
                seen = _structure_of(window, octets, strings) + b","
                if expected[checked : checked + len(seen)] != seen or not _is_tidy(octets, brackets):
                    raise invalid(f"input '{spec.name}': 'data' is not nested as its shape {list(shape)}")
                checked += len(seen)
                flat = np.frombuffer(window, np.uint8).copy()
                flat[brackets] = _SPACE
                yield flat.tobytes()
            elif len(brackets):
                raise invalid(f"input '{spec.name}': 'data' is nested unevenly")
            else:
                yield window
            if is_last:
                break
        if checked != len(expected):
            raise invalid(f"input '{spec.name}': 'data' is not nested as its shape {list(shape)}")


def _structure(shape: tuple[int, ...]) -> bytearray:
    """The brackets and commas in nested lists of that shape, which has no 0, and a comma behind.

    Made in one place: it can be nearly as long as the body.
    """
    text = bytearray(b"," if shape else b"")
    for size in reversed(shape[1:]):
        text *= size
        text.insert(0, _OPEN)
        text[-1:] = b"],"
    if shape:
        text *= shape[0]
    return text


def _structure_of(window: bytes, octets: Array, strings: Array | None) -> bytes:
    if strings is None:
        return window.translate(None, _NO_STRUCTURE)
    structural = (octets == _COMMA) | (octets == _OPEN) | (octets == _CLOSE)
    found: bytes = octets[structural & ~strings].tobytes()
    return found


def _is_tidy(octets: Array, brackets: Array) -> bool:
    """Whether brackets stand only where lists may begin and end; where values stand, the parser checks."""
    kinds = octets[brackets]
    before = _beyond_white(octets, brackets[kinds == _OPEN], -1)
    after = _beyond_white(octets, brackets[kinds == _CLOSE], 1)
    return bool(_MAY_PRECEDE[before].all() and _MAY_FOLLOW[after].all())


def _beyond_white(octets: Array, places: Array, step: int) -> Array:
    """The next bytes before or after these places that are not white; none where the window ends."""
    places = places + step
    for _ in range(_MOST_WHITE):
        places = places[(places >= 0) & (places < len(octets))]
        seen = octets[places]
        white = _WHITE[seen]
        if not white.any():
            return seen
        places = np.where(white, places + step, places)
    return octets[places]


def _read(spec: TensorSpec, flat: bytes, parser: simdjson.Parser) -> Array:
    """The values of a portion."""
    dtype = DTYPES[spec.datatype]
    text = b"[%b]" % flat
    if kind := BUFFERS.get(dtype.kind):
        try:
            array: Any = parser.parse(text)
            wide = np.frombuffer(array.as_buffer(of_type=kind[0]), kind[1])
            with np.errstate(over="raise"):
                narrow: Array = wide.astype(dtype, copy=False)
            if dtype.kind == "f" or np.array_equal(wide, narrow):
                return narrow
        except (TypeError, ValueError, FloatingPointError, RuntimeError):
            pass  # other values than numbers of that kind, or out of range: let the usual path say which
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: in the data of input '{spec.name}': {error}") from None
    return from_flat(spec, values)
