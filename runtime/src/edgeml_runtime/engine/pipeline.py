# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Several models, one after the other, served as one: tensors go from step to step by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Never

from edgeml_runtime.engine.model import Cancellation, Model
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.serving import Step
from edgeml_runtime.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A step as it is declared, and its model."""

    step: Step
    model: Model


class Pipeline:
    """Runs its steps in their order, on the thread that calls it."""

    def __init__(
        self,
        file: Path,
        steps: Sequence[LoadedStep],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
    ) -> None:
        """Check that all fits together; ``file`` is what errors name. Raises StartError."""
        self.blocking = any(step.model.blocking for step in steps)
        self.provider = ",".join(dict.fromkeys(step.model.provider for step in steps if step.model.provider))
        self._steps = steps
        self._tensors = _Wiring(file, steps, inputs).check(outputs)
        self.inputs = {name: self._tensors[name] for name in inputs}
        self.outputs = {name: self._tensors[name] for name in outputs}

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Compute the named outputs; see Model.run. Cancelled, it ends with the step under way."""
        tensors = dict(inputs)
        for number, (step, model) in enumerate((loaded.step, loaded.model) for loaded in self._steps):
            if cancellation is not None and cancellation.cancelled:
                raise RequestError(Failure.UNAVAILABLE, f"the request was ended before step {number}")
            given = {name: tensors[tensor] for name, tensor in step.inputs.items()}
            results = model.run(given, list(step.outputs), cancellation)
            for tensor, result in zip(step.outputs.values(), results, strict=True):
                if not self._tensors[tensor].fits(result.shape):
                    raise RequestError(
                        Failure.INTERNAL,
                        f"step {number} ({step.file}) gave '{tensor}' of shape {list(result.shape)}, "
                        f"the next one takes {list(self._tensors[tensor].shape)} (-1: any size)",
                    )
                tensors[tensor] = result
        return [tensors[name] for name in outputs]

    def close(self) -> None:
        """Close all steps."""
        for step in self._steps:
            step.model.close()


class _Wiring:
    """The tensors of a pipeline, as far as its steps are checked."""

    def __init__(self, file: Path, steps: Sequence[LoadedStep], inputs: Mapping[str, TensorSpec]) -> None:
        self._file = file
        self._steps = steps
        self._tensors = dict(inputs)
        self._origins = {name: f"input '{name}'" for name in inputs}
        self._used: set[str] = set()

    def check(self, outputs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """All tensors, with shapes that all who give or take them agree on. Raises StartError."""
        for number, loaded in enumerate(self._steps):
            self._check_step(number, loaded.step, loaded.model)
        for name, spec in outputs.items():
            self._take(f"outputs: '{name}'", name, spec)
        for name in self._tensors:
            if name not in self._used:
                self._fail(f"{self._origins[name]} is used by no step and is no output")
        return self._tensors

    def _check_step(self, number: int, step: Step, model: Model) -> None:
        where = f"steps[{number}] ({step.file})"
        for kind, wired, known in (("input", step.inputs, model.inputs), ("output", step.outputs, model.outputs)):
            for name in wired:
                if name not in known:
                    self._fail(f"{where}: the model has no {kind} '{name}', but {', '.join(known)}")
        for name, spec in model.inputs.items():
            if name not in step.inputs:
                self._fail(f"{where}: input '{name}' of the model gets no tensor")
            self._take(f"{where}: input '{name}'", step.inputs[name], spec)
        for name, tensor in step.outputs.items():
            if tensor in self._tensors:
                self._fail(f"{where}: '{tensor}' is given a second time, first by {self._origins[tensor]}")
            self._tensors[tensor] = replace(model.outputs[name], name=tensor)
            self._origins[tensor] = f"'{tensor}' of {where}"

    def _take(self, where: str, tensor: str, spec: TensorSpec) -> None:
        if tensor not in self._tensors:
            later = any(tensor in loaded.step.outputs.values() for loaded in self._steps)
            reason = "a later step gives" if later else f"nothing gives; there are {', '.join(self._tensors)}"
            self._fail(f"{where} takes '{tensor}', which {reason}")
        given = self._tensors[tensor]
        shape = _common_shape(given.shape, spec.shape)
        if given.raw != spec.raw:
            text, raw = ("raw BYTES", "text") if given.raw else ("text", "raw BYTES")
            self._fail(f"{where} takes {raw}, but {self._origins[tensor]} is {text}")
        if given.datatype != spec.datatype or shape is None:
            self._fail(
                f"{where} is {spec.datatype} of shape {list(spec.shape)}, "
                f"but {self._origins[tensor]} is {given.datatype} of shape {list(given.shape)} (-1: any size)"
            )
        self._tensors[tensor] = replace(given, shape=shape)
        self._used.add(tensor)

    def _fail(self, what: str) -> Never:
        raise StartError(f"{self._file}: {what}")


def _common_shape(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...] | None:
    """What fits both, None when nothing does; an empty shape is of any rank."""
    if not first or not second:
        return first or second
    if len(first) != len(second):
        return None
    pairs = list(zip(first, second, strict=True))
    if any(-1 not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return tuple(max(pair) for pair in pairs)
