# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bodies that simdjson reads mean what they mean when orjson reads them."""

import json
from typing import Any

import pytest
from edgeml_runtime.codecs import json_binary, large_json
from hypothesis import given, settings
from hypothesis import strategies as some
from json_tensors import SPECS, Model, decoded, tensors


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
