# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model of Python code in the server's own process."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.python_code import Context, PythonCode
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)


class PythonModel:
    """Runs on the thread that calls it, to its end: Python code cannot be stopped from outside."""

    blocking = True
    provider = ""

    def __init__(
        self, file: Path, context: Context, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        """Load the code. Raises StartError."""
        self._file = file
        self.inputs = inputs
        self.outputs = outputs
        try:
            self._code = PythonCode(file, context, outputs)
        except StartError as error:
            if error.__cause__ is not None:
                logger.error("%s cannot be loaded", file, exc_info=error.__cause__)
            raise StartError(str(error)) from None

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], _cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs; see Model.run."""
        try:
            results = self._code.infer(inputs)
        except RequestError as error:
            level = logging.ERROR if error.failure is Failure.INTERNAL else logging.DEBUG
            logger.log(level, "%s: %s", self._file, error, exc_info=error.__cause__)
            raise
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Drop the code and what it holds."""
        self._code.close()
