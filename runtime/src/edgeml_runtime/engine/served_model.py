# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model that is loaded, warmed up and measured, and the decision where a request computes."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from time import perf_counter, thread_time

from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.batching import Batcher, check_batchable
from edgeml_runtime.engine.golden import golden_files, read_case, zeros
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.sampling import Sample
from edgeml_runtime.engine.scheduler import Outcome, Run, Scheduler
from edgeml_runtime.engine.sequences import SequenceModel, Sequences
from edgeml_runtime.errors import RequestError, StartError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.metrics import Metrics, ModelMetrics
from edgeml_runtime.serving import EngineOptions, ServingOptions
from edgeml_runtime.tensors import Array

# A hop to a thread and back costs about 50 microseconds: below this it is cheaper, for
# everybody, to compute on the event loop.
INLINE_SECONDS = 200e-6
# For trying sizes of inputs.
WARM_UP_SECONDS = 10.0
# A run on the event loop that took so long is looked into.
STALLED_SECONDS = 0.1

logger = logging.getLogger(__name__)


class ServedModel:
    """One version of a model in service. Built off the event loop, used on it."""

    #: Set by enter_service.
    metrics: ModelMetrics
    #: While a share of the requests is kept; see sampling.Sampling.
    sample: Sample | None = None

    def __init__(
        self, config: ModelConfig, engine: EngineOptions, cache_directory: Path | None, check: bool = False
    ) -> None:
        """Load, warm up and measure; ``check``: against all golden cases. Raises StartError."""
        self.config = config
        self.name = config.name
        self.version = config.version
        self.digest = config.digest
        description, self.options, self.model = load_model(config, engine, cache_directory)
        self.platform = description.platform
        self.provider = self.model.provider
        try:
            self._sequence_model = SequenceModel(self.model, self.options.sequence) if self.options.sequence else None
            if self._sequence_model:
                self.model = self._sequence_model
            self.inputs = self.model.inputs
            self.outputs = self.model.outputs
            self.warm_up_inputs, self.warm_up_outputs = self._warm_up_request()
            #: Of one run; infinite when nothing is known that the model can run on.
            self.compute_seconds = self._measure() if self.warm_up_outputs else inf
            if self.options.batching:
                check_batchable(self.model, self.warm_up_inputs, self.warm_up_outputs)
            if check:
                self._check_golden()
        except BaseException as error:
            self.model.close()
            if isinstance(error, RequestError):
                raise StartError(f"model '{config.name}' fails on its warm-up input: {error}") from None
            raise
        self._sequences = (
            Sequences(self.name, self.version, self.options.sequence) if self.options.sequence is not None else None
        )
        self._scheduler = self._make_scheduler(self.options)
        self._inline_elements = self._most_inline_elements()
        self._inquiry: asyncio.Task[None] | None = None
        self._withdraw: Callable[[], None] = lambda: None

    def enter_service(self, metrics: Metrics) -> None:
        """Announce the model; requests may come from now on."""
        announcement = (self.name, self.version, self.digest, self.platform, self.provider, self._count_under_way)
        self.metrics = metrics.model_loaded(*announcement)
        self._withdraw = lambda: metrics.model_unloaded(*announcement)
        self._scheduler.observe = self._observe

    async def infer(self, request: InferenceRequest) -> list[Array]:
        """Compute the requested outputs, in their order. Never holds the event loop for long.

        Raises RequestError: invalid, internal, too many when the queue is full, deadline when the
        time is over before the answer is there, unavailable when the model was just unloaded.
        """
        if self._sequences is not None:
            return await self._infer_in_sequence(self._sequences, request)
        sample = self.sample
        copied = sample.begin(request) if sample is not None else None
        elements = 0
        for tensor in request.inputs.values():
            elements += tensor.size
        results: list[Array] | None = None
        try:
            if elements > self._inline_elements:
                results = await self._scheduler.infer(request)
            else:
                started = perf_counter()
                results = self.model.run(request.inputs, request.outputs)
                self._observe_inline(request, perf_counter() - started)
            return results
        finally:
            if sample is not None and copied is not None:
                sample.end(copied, request, results)

    async def retire(self) -> None:
        """Let the requests under way finish, then give the model's memory back. New ones are refused."""
        self._inline_elements = -1
        if self._inquiry is not None:
            await self._inquiry
            self._inline_elements = -1
        await self._scheduler.close()
        if self._sequences is not None:
            self._sequences.close()
        self._withdraw()
        await asyncio.to_thread(self.model.close)

    # -- private ---------------------------------------------------------------------------------------------------

    async def _infer_in_sequence(self, sequences: Sequences, request: InferenceRequest) -> list[Array]:
        state = sequences.enter(request.sequence)
        try:
            elements = sum(tensor.size for tensor in request.inputs.values())
            # Others of the sequence that wait come first.
            if self._sequence_model is None or elements > self._inline_elements or state.pending > 1 or state.running:
                return await self._scheduler.infer(request, state)
            started = perf_counter()
            results = state.advance(request, self._sequence_model.step(state, request))
            self._observe_inline(request, perf_counter() - started)
            return results
        finally:
            sequences.leave(state)

    def _make_scheduler(self, options: ServingOptions) -> Scheduler:
        threads = options.engine
        parallel = threads.parallel or max(1, len(os.sched_getaffinity(0)) // threads.threads)
        if options.batching:
            batcher = Batcher(self.model, options.batching)
            return Scheduler(self.name, options, parallel, batcher.compute, batcher.take)
        return Scheduler(self.name, options, parallel, self._compute)

    def _compute(self, run: Run) -> Sequence[Outcome]:
        """On an engine thread."""
        (job,) = run.jobs
        try:
            if job.sequence is not None and self._sequence_model is not None:
                return [self._sequence_model.step(job.sequence, job.request, run.cancellation)]
            return [self.model.run(job.request.inputs, job.request.outputs, run.cancellation)]
        except RequestError as error:
            return [error]

    def _most_inline_elements(self) -> int:
        """How large the inputs of a request may be for the event loop, assuming that time grows with them.

        Warm-up may have seen a small input; a smaller one is not assumed to take less time.
        """
        if self.model.blocking or self.options.batching or self.compute_seconds >= INLINE_SECONDS:
            return -1
        elements = sum(tensor.size for tensor in self.warm_up_inputs.values()) or 1
        return int(elements * INLINE_SECONDS / self.compute_seconds)

    def _observe_inline(self, request: InferenceRequest, seconds: float) -> None:
        self._observe(request, 0.0, seconds)
        if seconds > STALLED_SECONDS and self._inquiry is None:
            self._inquiry = asyncio.get_running_loop().create_task(self._inquire(request))

    async def _inquire(self, request: InferenceRequest) -> None:
        """A run held the event loop: repeat it on a thread, where processor time tells the model from the machine.

        It was the model when its time depends on more than the size of its inputs. It then stays on the threads.
        """
        most, self._inline_elements = self._inline_elements, -1
        cancellation = Cancellation()
        timer = asyncio.get_running_loop().call_later(self.options.deadline_seconds, cancellation.cancel)
        seconds = await asyncio.to_thread(self._processor_seconds, request, cancellation)
        timer.cancel()
        if seconds < STALLED_SECONDS / 2:
            self._inline_elements, self._inquiry = most, None
        else:
            logger.warning(
                "a run of %s %s takes %.3f s, %.6f s at warm-up: from now on all run on engine threads",
                *(self.name, self.version, seconds, self.compute_seconds),
            )

    def _processor_seconds(self, request: InferenceRequest, cancellation: Cancellation) -> float:
        started = thread_time()
        with suppress(RequestError):
            self.model.run(request.inputs, request.outputs, cancellation)
        return thread_time() - started

    def _observe(self, request: InferenceRequest, queue: float, compute: float) -> None:
        request.queue_seconds, request.compute_seconds = queue, compute
        self.metrics.queue(queue)
        self.metrics.compute(compute)

    def _count_under_way(self) -> int:
        return self._scheduler.under_way

    def _check_golden(self) -> None:
        """Compute all golden cases. Raises StartError that names the first difference."""
        for file in golden_files(self.config.path):
            case = read_case(file, self.inputs, self.outputs)
            try:
                results = self.model.run(case.inputs, list(case.outputs) or list(self.outputs))
            except RequestError as error:
                raise StartError(f"{file}: the model fails: {error}") from None
            if difference := case.difference(dict(zip(case.outputs, results, strict=False))):
                raise StartError(f"{file}: {difference}")

    def _warm_up_request(self) -> tuple[dict[str, Array], list[str]]:
        """What to warm up with; no outputs when nothing is known that the model can run on."""
        outputs = list(self.outputs)
        files = golden_files(self.config.path)
        if files:
            case = read_case(files[0], self.inputs, self.outputs)
            return case.inputs, list(case.outputs) or outputs
        if self.model.blocking:  # code is written for what it declares
            return next(zeros(self.inputs.values())), outputs
        first: RequestError | None = None
        started = perf_counter()
        for inputs in zeros(self.inputs.values()):
            try:
                self.model.run(inputs, outputs)
            except RequestError as error:
                first = first or error
            else:
                return inputs, outputs
            if perf_counter() - started > WARM_UP_SECONDS:
                break
        if first is not None and self._sequence_model is not None:
            raise first  # its states may be declared wrongly
        logger.warning(
            "%s %s cannot run on zeros of any size tried (%s): it is served unmeasured, on engine threads; "
            "add a golden case, %s, that it can be warmed up with ('outputs' may be left out)",
            *(self.name, self.version, first),
            self.config.path / "golden" / "first.json" if self.config.path.is_dir() else "in a model directory",
        )
        return {}, []

    def _measure(self) -> float:
        """Seconds of one run: the best of several, since neighbours on the machine only ever add."""
        best = float("inf")
        for _ in range(11):
            started = perf_counter()
            self.model.run(self.warm_up_inputs, self.warm_up_outputs)
            best = min(best, perf_counter() - started)
            if best > 100 * INLINE_SECONDS:
                break
        return best
