# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the scripts with tritonclient share. They run in an environment of their own, without the runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # type: ignore[import-not-found]

ROWS = np.array([[1, 2, 3, 4], [0.5, -0.5, 0.25, -0.25]], dtype=np.float32)
BEST = [2, 0]

#: A tensor of each datatype for the model every_type, with the values that are hard to carry.
TENSORS = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], dtype=np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], dtype=np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], dtype=np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], dtype=np.uint64),
    "INT8": np.array([[-128, 127]], dtype=np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], dtype=np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], dtype=np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], dtype=np.int64),
    "FP16": np.array([[-65504, 0.5]], dtype=np.float16),
    "FP32": np.array([[-3.4e38, 0.1]], dtype=np.float32),
    "FP64": np.array([[-1.7e308, 0.1]], dtype=np.float64),
    "BYTES": np.array([["", "äöü €"]], dtype=object),
}


def inputs(module: Any, tensors: dict[str, np.ndarray[Any, Any]], **options: Any) -> list[Any]:
    """Inputs of a request, in the classes of that client."""
    given = []
    for name, array in tensors.items():
        given.append(module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        given[-1].set_data_from_numpy(array, **options)
    return given


def check_perceptron(result: Any) -> None:
    """The answer to ROWS."""
    assert result.as_numpy("scores").shape == (2, 3)
    assert result.as_numpy("best").tolist() == BEST
    assert result.as_numpy("scores").argmax(axis=1).tolist() == BEST


def check_every_type(result: Any, names: list[str]) -> None:
    """Each tensor has come back as it was."""
    for name in names:
        seen = result.as_numpy(f"out_{name}")
        expected = TENSORS[name]
        if name == "BYTES":
            texts = [value if isinstance(value, str) else str(value, "utf-8") for value in seen.flat]
            assert texts == list(expected.flat)
        else:
            assert seen.dtype == expected.dtype
            assert seen.tobytes() == expected.tobytes()


def error_of(call: Callable[[], Any]) -> InferenceServerException:
    """The error that a call must end with."""
    try:
        answer = call()
    except InferenceServerException as error:
        return error
    raise AssertionError(f"no error but {answer}")
