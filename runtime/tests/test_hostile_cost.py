# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a JSON body costs grows with its size, whatever is repeated in it: not with the square of its size."""

import time

import pytest
from edgeml_runtime.codecs import json_binary
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import RequestError
from edgeml_runtime.tensors import TensorSpec
from json_tensors import Model

SIZE = 400_000
#: Seconds of processor time: a hundred times what a body takes here. A square takes minutes.
MOST_SECONDS = 20.0
MODEL = Model("m", "1.0.0", "", "", {"x": TensorSpec("x", "FP32", ()), "s": TensorSpec("s", "BYTES", ())}, {})
BEGINNINGS = {
    "nothing": b"",
    "inputs": b'{"inputs":[',
    "tensor": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],',
    "numbers": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[9],"data":[',
    "strings": b'{"inputs":[{"name":"s","datatype":"BYTES","shape":[9],"data":[',
    "string": b'{"id":"',
}
REPEATED = (
    b"{", b"[", b"]", b"[],", b"{},", b'"', b"\\", b'\\"', b'\\\\"', b",", b":", b" ", b"1,", b"1 ", b'"a",', b'"\\"",',
    b'"a":1,', b'"a":{', b'"data":[1],', b'"data":[', b'"data":["', b'"\\u0064ata":[1],', b'"inputs":[',
    b'"inputs":[],', b'{"data":[1]},', b"[[1],", b"[1,[2]],", b'"parameters":{"a":1},', b'"shape":[1],', b'"]",',
    b"1" * 50 + b",", b"\xff",
)  # fmt: skip


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_what_is_repeated_costs_what_it_is_long(beginning: str) -> None:
    for piece in REPEATED:
        body = BEGINNINGS[beginning] + piece * (SIZE // len(piece))
        since = time.process_time()
        with pytest.raises(RequestError):
            json_binary.decode(MODEL, body, None, Limits())
        assert time.process_time() - since < MOST_SECONDS, piece
