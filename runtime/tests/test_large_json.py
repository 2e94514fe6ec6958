# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bodies that simdjson reads mean what they mean when orjson reads them."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgeml_runtime.codecs import json_binary, large_json
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import RequestError
from edgeml_runtime.tensors import DTYPES, TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as some


class Model(NamedTuple):
    name: str
    version: str
    digest: str
    platform: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


SPECS = {datatype: TensorSpec(datatype, datatype, ()) for datatype in DTYPES}
NUMBERS = (
    some.integers(-300, 300)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.sampled_from([0, -1, 1.0, -0.0, 127, 128, 255, 256, 65504.0, 65520, 2**24 + 1, 1e-45, 3.4e38, 3.5e38, 1e300])
    | some.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30])
)
VALUES = NUMBERS | some.booleans() | some.none() | some.text(max_size=3) | some.sampled_from([[], [1], {}, {"a": [2]}])
SHAPES = some.lists(some.integers(0, 3), max_size=4)


@some.composite
def tensors(draw: some.DrawFn) -> dict[str, Any]:
    """Mostly right, at times with a wrong count, type, range or nesting."""
    shape = draw(SHAPES)
    count = int(np.prod(shape)) + draw(some.sampled_from([0, 0, 0, 0, 1]))
    kind = draw(some.sampled_from([NUMBERS, some.integers(0, 100), some.floats(-10, 10), VALUES]))
    flat = draw(some.lists(kind, min_size=count, max_size=count))
    data: Any = flat
    if draw(some.booleans()) and count == np.prod(shape):
        data = np.array([None, *flat], dtype=object)[1:].reshape(shape).tolist()
        if type(data) is list and data and draw(some.integers(0, 4)) == 0:
            data[-1] = draw(VALUES)
    tensor = {"name": draw(some.sampled_from(list(DTYPES))), "shape": shape, "data": data}
    return {**tensor, "datatype": tensor["name"], **draw(some.sampled_from([{}, {}, {"parameters": {"[": [1, [2]]}}]))}


def decoded(model: Model, body: bytes) -> Any:
    try:
        request, in_binary = json_binary.decode(model, body, None, Limits())
    except RequestError as error:
        return str(error)
    arrays = {name: (str(array.dtype), array.shape, array.tolist()) for name, array in request.inputs.items()}
    return repr((arrays, request, in_binary)) if not arrays else repr((arrays, request.id, request.outputs, in_binary))


@given(
    given_tensors=some.lists(tensors(), min_size=1, max_size=2),
    damage=some.none() | some.tuples(some.floats(0, 1), some.binary(max_size=2)),
)
@settings(deadline=None, max_examples=400)
def test_both_ways_agree(given_tensors: list[dict[str, Any]], damage: tuple[float, bytes] | None) -> None:
    names = {tensor["name"] for tensor in given_tensors}
    model = Model("m", "1.0.0", "", "", {name: SPECS[name] for name in names}, {})
    body = json.dumps({"inputs": given_tensors, "id": "[]"}).encode()
    if damage is not None:
        cut = int(damage[0] * len(body))
        body = body[:cut] + damage[1] + body[cut + len(damage[1]) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_binary, "_LARGE", 10**9)
        usual = decoded(model, body)
        patch.setattr(json_binary, "_LARGE", 0)
        assert decoded(model, body) == usual


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1], "data": [1], "data": [2]}]}',
        '{"inputs": [], "inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [2, 2], "data": [[1, [2]], [3, 4]]}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [3], "data": [1, [2], 3]}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [2], "data": [1, [2]], "x": "[["}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1], "data": [18446744073709551616]}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1], "data": [1e400]}]}',
        '{"inputs": [{"name": "FP\\u0033\\u0032", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        '{"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1], "data": [1]}], "id": "\\ud800"}',
        '{"inputs": {"data": [1]}}',
        '{"inputs": [1]}',
        "[" * 5000,
        "[]",
        "1",
        "",
    ],
)
def test_odd_documents(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("m", "1.0.0", "", "", {"FP32": SPECS["FP32"]}, {})
    usual = decoded(model, text.encode())
    monkeypatch.setattr(json_binary, "_LARGE", 0)
    assert decoded(model, text.encode()) == usual


def test_numbers_never_become_python_objects() -> None:
    tensor = {"name": "FP32", "datatype": "FP32", "shape": [2, 3], "data": [[1, 2.5, 3], [4, 5, 6e2]]}
    (read,) = large_json.loads(json.dumps({"inputs": [tensor]}).encode())["inputs"]
    assert type(read["data"]) is large_json.Numbers
    assert read["data"].tensor(SPECS["FP32"], (2, 3)).tolist() == [[1, 2.5, 3], [4, 5, 600]]
