# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The models, each with one input and the answer that every server must give."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

DATATYPES = {"float32": "FP32", "int32": "INT32"}
"""NumPy's names to the protocol's."""

TITLES = {
    "tiny": "tiny MLP",
    "tree": "boosted trees",
    "vision": "convolution net 224x224",
    "file_type": "file type detector (magika)",
}


@dataclass(frozen=True)
class Case:
    """A model with one request for it and the engine's own answer."""

    model: str
    file: Path
    input_name: str
    input: Array
    output_name: str
    output: Array

    @property
    def datatype(self) -> str:
        """The input's datatype in the protocol."""
        return DATATYPES[self.input.dtype.name]

    def is_answered_by(self, values: Array) -> bool:
        """Whether ``values``, flat, are this case's answer: within rounding, since engines order sums differently."""
        return values.size == self.output.size and bool(
            np.allclose(values, self.output.ravel(), rtol=1e-3, atol=1e-5, equal_nan=False)
        )


def load_case(models: Path, model: str) -> Case:
    """Read what build_models.py wrote below ``models``."""
    with np.load(models / f"{model}.npz") as arrays:
        return Case(
            model=model,
            file=models / model / "model.onnx",
            input_name=str(arrays["input_name"]),
            input=arrays["input"],
            output_name=str(arrays["output_name"]),
            output=arrays["output"],
        )
