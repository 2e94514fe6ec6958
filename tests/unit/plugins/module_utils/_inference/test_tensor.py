# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensors keep their elements in every form."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import DATATYPES, FLOATING, Tensor
from hypothesis import given
from hypothesis import strategies as st

ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "BYTES": st.binary(max_size=20),
    **{f"UINT{bits}": st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    "FP16": st.floats(width=16),
    "FP32": st.floats(width=32),
    "FP64": st.floats(width=64),
}


def same(left: Any, right: Any) -> bool:
    return bool(left == right) or (left != left and right != right)


def test_every_datatype_of_the_protocol_is_known() -> None:
    assert set(DATATYPES) == set(ELEMENTS)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_values_survive_the_raw_form(datatype: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(ELEMENTS[datatype], max_size=12))
    seen = Tensor.from_values("x", datatype, [1, len(values)], values).values()
    assert len(seen) == len(values)
    assert all(map(same, values, seen))
    assert all(type(left) is type(right) for left, right in zip(values, seen, strict=True))


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_values_survive_the_json_form(datatype: str, data: st.DataObject) -> None:
    elements = ELEMENTS[datatype]
    if datatype == "BYTES":
        elements = st.text(max_size=20).map(str.encode)
    elif datatype in FLOATING:
        elements = elements.filter(math.isfinite)
    values = data.draw(st.lists(elements, max_size=12))
    tensor = Tensor.from_values("x", datatype, [len(values)], values)
    assert Tensor.from_json(tensor.to_json()) == tensor


@pytest.mark.parametrize(
    ("datatype", "values", "raw"),
    [
        ("BOOL", [True, False], b"\x01\x00"),
        ("UINT16", [1, 258], b"\x01\x00\x02\x01"),
        ("INT32", [-2], b"\xfe\xff\xff\xff"),
        ("FP16", [1.0, -2.0], b"\x00\x3c\x00\xc0"),
        ("FP32", [1.0], b"\x00\x00\x80\x3f"),
        ("BYTES", [b"ab", b""], b"\x02\x00\x00\x00ab\x00\x00\x00\x00"),
    ],
)
def test_raw_form_is_that_of_the_specification(datatype: str, values: list[Any], raw: bytes) -> None:
    assert Tensor.from_values("x", datatype, [len(values)], values).raw == raw


def test_nested_json_data_is_row_major() -> None:
    tensor = Tensor.from_json({"name": "x", "shape": [2, 2], "datatype": "INT8", "data": [[1, 2], [3, 4]]})
    assert tensor.values() == [1, 2, 3, 4]


def test_null_in_json_is_nan_for_floating_datatypes_only() -> None:
    document = {"name": "x", "shape": [1], "datatype": "FP32", "data": [None]}
    value = Tensor.from_json(document).values()[0]
    assert value != value
    with pytest.raises(ValueError, match="not of datatype INT32"):
        Tensor.from_json(document | {"datatype": "INT32"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3]}, r"has 2 elements, but 3 by its shape"),
        ({"shape": ["2"]}, r"not a list of whole numbers"),
        ({"shape": [-2]}, r"negative size"),
        ({"shape": None}, r"no valid 'shape'"),
        ({"data": 7}, r"no valid 'data'"),
        ({"datatype": "FP8"}, r"unknown datatype 'FP8'"),
        ({"data": [1, 256]}, r"not of datatype UINT8"),
        ({"data": [1, 2.5]}, r"not of datatype UINT8"),
        ({"data": [1, "2"]}, r"not of datatype UINT8"),
        ({"datatype": "FP32", "data": [1, 1e39]}, r"not of datatype FP32"),
        ({"datatype": "BOOL", "data": [True, "false"]}, r"neither true nor false"),
        ({"datatype": "BYTES", "data": ["a", 1]}, r"not a string"),
    ],
)
def test_json_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tensor.from_json({"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]} | change)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", (2,), b"\x00" * 7),
        ("FP32", (), b""),
        ("BYTES", (1,), b"\x01\x00\x00"),
        ("BYTES", (1,), struct.pack("<I", 5) + b"abc"),
        ("BYTES", (2,), struct.pack("<I", 0)),
    ],
)
def test_raw_form_of_another_size_is_refused(datatype: str, shape: tuple[int, ...], raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"elements|ends within"):
        Tensor("x", datatype, shape, raw)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_zeros(datatype: str) -> None:
    tensor = Tensor.zeros("x", datatype, (2, 3))
    assert tensor.shape == (2, 3)
    assert tensor.values() == [b"" if datatype == "BYTES" else 0] * 6


def test_scalar_has_one_element() -> None:
    assert Tensor.from_values("x", "INT64", [], [7]).values() == [7]


def test_json_cannot_express_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Tensor.from_values("x", "FP32", [1], [math.inf]).to_json()
