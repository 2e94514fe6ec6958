# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Requests in JSON of all kinds, right and wrong, and what is read of them."""

from typing import Any, NamedTuple

import numpy as np
from edgeml_runtime.codecs import json_binary
from edgeml_runtime.config import Limits
from edgeml_runtime.errors import RequestError
from edgeml_runtime.tensors import DTYPES, TensorSpec
from hypothesis import strategies as some


class Model(NamedTuple):
    """A model's signature."""

    name: str
    version: str
    digest: str
    platform: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    provider: str = "CPU"


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
            data = [*data[:-1], draw(VALUES)]  # a new list: the last one may be an element that others share
    tensor = {"name": draw(some.sampled_from(list(DTYPES))), "shape": shape, "data": data}
    return {**tensor, "datatype": tensor["name"], **draw(some.sampled_from([{}, {}, {"parameters": {"[": [1, [2]]}}]))}


def decoded(model: Model, body: bytes) -> Any:
    """What is read, as text; the error if it is refused."""
    try:
        request, in_binary = json_binary.decode(model, body, None, Limits())
    except RequestError as error:
        return str(error)
    arrays = {name: (str(array.dtype), array.shape, array.tolist()) for name, array in request.inputs.items()}
    return repr((arrays, request, in_binary)) if not arrays else repr((arrays, request.id, request.outputs, in_binary))
