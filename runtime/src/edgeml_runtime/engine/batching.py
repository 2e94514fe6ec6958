# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Micro-batching: requests that wait at the same time are computed together, along the first dimension."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from edgeml_runtime.engine.golden import difference
from edgeml_runtime.engine.model import Model
from edgeml_runtime.engine.scheduler import Job, Outcome, Run
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.serving import Batching
from edgeml_runtime.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)


class Batcher:
    """Puts batches together and computes them.

    A batch is not waited for unless the one before had several requests and ended less than the
    greatest delay ago: their clients are likely to come again at about the same time. Under load,
    batches fill by themselves while the threads are busy.
    """

    def __init__(self, model: Model, options: Batching) -> None:
        self._model = model
        self._max_size = options.max_size
        self._delay = options.max_delay_ms / 1000
        #: How many requests to wait for, and until when.
        self._expected = (1, 0.0)

    def take(self, waiting: deque[Job]) -> tuple[list[Job], float]:
        """See scheduler.Take."""
        batch, full = self._next(waiting)
        expected, until = self._expected
        if not full and len(batch) < expected:
            seconds = min(batch[0].arrived + self._delay, until) - perf_counter()
            if seconds > 0:
                return [], seconds
        for job in batch:
            waiting.remove(job)
        return batch, 0.0

    def compute(self, run: Run) -> Sequence[Outcome]:
        """Run the model once for all jobs; one by one when that fails, so that none fails for another's sake."""
        jobs = run.jobs
        try:
            if len(jobs) > 1:
                try:
                    return self._together([job.request for job in jobs], run)
                except (RequestError, MemoryError):
                    logger.debug(
                        "a batch of %d requests failed: they are computed one by one", len(jobs), exc_info=True
                    )
            return [self._alone(job, run) for job in jobs]
        finally:
            self._expected = (len(jobs), perf_counter() + self._delay)

    # -- private ---------------------------------------------------------------------------------------------------

    def _next(self, waiting: deque[Job]) -> tuple[list[Job], bool]:
        """The oldest job and those that fit to it, and whether there is no room for more."""
        batch: list[Job] = []
        rows = 0
        for job in waiting:
            if job.kind is None:
                job.kind = kind(job.request)
            if batch and job.kind != batch[0].kind:
                continue
            # A request without rows counts as well: nothing is endless.
            rows += max(1, _rows(job.request))
            if batch and rows > self._max_size:
                return batch, True
            batch.append(job)
            if rows >= self._max_size or not job.kind:
                return batch, True
        return batch, False

    def _together(self, requests: Sequence[InferenceRequest], run: Run) -> list[Outcome]:
        first = requests[0]
        inputs = {name: np.concatenate([request.inputs[name] for request in requests]) for name in first.inputs}
        ends = np.cumsum([_rows(request) for request in requests])
        results = self._model.run(inputs, first.outputs, run.cancellation)
        for name, result in zip(first.outputs, results, strict=True):
            if result.ndim == 0 or result.shape[0] != ends[-1]:
                raise RequestError(
                    Failure.INTERNAL, f"output '{name}' has shape {list(result.shape)} for {ends[-1]} rows"
                )
        outcomes: list[Outcome] = []
        start = 0
        for end in ends:
            outcomes.append([result[start:end] for result in results])
            start = end
        return outcomes

    def _alone(self, job: Job, run: Run) -> Outcome:
        if job.answer.done():  # nobody waits for it any more
            return []
        try:
            return self._model.run(job.request.inputs, job.request.outputs, run.cancellation)
        except RequestError as error:
            return error


def kind(request: InferenceRequest) -> tuple[object, ...]:
    """Requests of an equal kind can be computed together; one of the empty kind only alone.

    A kind is what the requests must have in common: the shapes without the first dimension, and the outputs.
    """
    shapes = [array.shape for array in request.inputs.values()]
    if len({shape[0] for shape in shapes}) != 1:
        return ()
    names_and_shapes = sorted((name, array.shape[1:]) for name, array in request.inputs.items())
    return (*names_and_shapes, *request.outputs)


def _rows(request: InferenceRequest) -> int:
    return len(next(iter(request.inputs.values())))


def check_batchable(model: Model, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
    """Raises StartError when the model cannot be batched: by its signature, or as a run with other rows shows.

    ``inputs``, ``outputs``: what the model was warmed up with.
    """
    for what, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs.values():
            if not spec.shape or spec.shape[0] != -1:
                raise StartError(
                    f"batching: {what} '{spec.name}' has shape {list(spec.shape)}; "
                    "the first dimension of all inputs and outputs must be of any size"
                )
    if not model.inputs:
        raise StartError("batching: the model has no input")
    if not outputs:
        raise StartError("batching: the model cannot run on zeros; add a golden case to check it with")
    if not kind(InferenceRequest("", dict(inputs), list(outputs))):
        raise StartError("batching: the inputs of the first golden case differ in their first dimension")
    alone = model.run(inputs, outputs)
    rows = next(iter(inputs.values())).shape[0]
    together = _run_beside_others(model, inputs, outputs)
    for name, expected, seen in zip(outputs, alone, together, strict=True):
        if expected.ndim == 0 or expected.shape[0] != rows or seen.ndim == 0 or seen.shape[0] != 2 * rows:
            raise StartError(
                f"batching: output '{name}' has shape {list(expected.shape)} for {rows} rows "
                f"and {list(seen.shape)} for {2 * rows}; it must have one row for each row of the inputs"
            )
    own = dict(zip(outputs, [result[:rows] for result in together], strict=True))
    if found := difference(own, dict(zip(outputs, alone, strict=True))):
        raise StartError(f"batching: other rows in the batch change a result: {found}")


def _run_beside_others(model: Model, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    try:
        return model.run(_beside(inputs, model.inputs, zeros=True), outputs)
    except RequestError:  # zeros may be nothing that the model takes
        return model.run(_beside(inputs, model.inputs, zeros=False), outputs)


def _beside(inputs: Mapping[str, Array], specs: Mapping[str, TensorSpec], zeros: bool) -> dict[str, Array]:
    return {
        name: np.concatenate((array, specs[name].zeros(array.shape) if zeros else array))
        for name, array in inputs.items()
    }
