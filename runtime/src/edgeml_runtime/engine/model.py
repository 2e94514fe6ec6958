# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The interface of everything that computes: an ONNX session, Python code, a pipeline of both."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from edgeml_runtime.tensors import Array, TensorSpec


class Cancellation:
    """Lets one thread end the run of another. Safe to use from any thread, in any order."""

    def __init__(self) -> None:
        self.cancelled = False
        self._on_cancel: Callable[[], object] | None = None

    def bind(self, on_cancel: Callable[[], object]) -> None:
        """Say how the run that begins now is ended; called at once when it was cancelled before."""
        self._on_cancel = on_cancel
        if self.cancelled:
            on_cancel()

    def cancel(self) -> None:
        """End the run, or have it not begin."""
        self.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()


class Model(Protocol):
    """A loaded model. ``run`` is called from several threads at once, at most ``parallel`` of them.

    ``blocking``: a run may wait, or take as long as somebody's code likes; never on the event loop.
    """

    blocking: bool
    #: The execution provider that computes, several with commas between; empty for code.
    provider: str

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Tensors that a request brings, by name."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Tensors that a request can ask for, by name."""

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs, in their order, from all inputs.

        Arrays have the dtypes and shapes that the signature says (see tensors.DTYPES).
        Raises RequestError: invalid when an input is refused, internal when the model fails.
        """

    def close(self) -> None:
        """Give back what the model holds; nothing runs any more."""
