# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model that is loaded, warmed up and measured, and the decision where and when a request computes."""

import asyncio
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.golden import golden_files, read_case, zeros
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.serving import EngineOptions
from edgeml_runtime.tensors import Array

# A hop to a thread and back costs about 50 microseconds: below this it is cheaper, for
# everybody, to compute on the event loop.
INLINE_SECONDS = 200e-6

logger = logging.getLogger(__name__)


class _Job:
    """A request on its way through an engine thread."""

    __slots__ = ("answer", "arrived", "cancellation", "finished", "request", "started")

    def __init__(self, request: InferenceRequest, answer: "asyncio.Future[list[Array]]") -> None:
        self.request = request
        self.answer = answer
        self.cancellation = Cancellation()
        self.arrived = self.started = self.finished = perf_counter()


class ServedModel:
    """One version of a model in service. Built off the event loop, used on it."""

    def __init__(
        self, config: ModelConfig, engine: EngineOptions, cache_directory: Path | None, metrics: Metrics
    ) -> None:
        """Load, warm up and measure. Raises StartError."""
        self.config = config
        self.name = config.name
        self.version = config.version
        self.digest = config.digest
        description, self.options, self.model = load_model(config, engine, cache_directory)
        self.platform = description.platform
        self.inputs = self.model.inputs
        self.outputs = self.model.outputs
        try:
            self.warm_up_inputs, self.warm_up_outputs = self._warm_up_request()
            self.compute_seconds = self._measure()
        except BaseException as error:
            self.model.close()
            if isinstance(error, RequestError):
                raise StartError(f"{config.path}: the model fails on its warm-up input: {error}") from None
            raise
        self._elements = _elements(self.warm_up_inputs)
        threads = self.options.engine
        self._parallel = threads.parallel or max(1, len(os.sched_getaffinity(0)) // threads.threads)
        self._threads = ThreadPoolExecutor(self._parallel, thread_name_prefix=config.name)
        self._under_way = 0
        self._retired: asyncio.Event | None = None
        self.metrics = metrics.model_loaded(
            self.name, self.version, self.digest, self.platform, lambda: self._under_way
        )
        self._metrics = metrics

    async def infer(self, request: InferenceRequest) -> list[Array]:
        """Compute the requested outputs, in their order. Never holds the event loop for long.

        Raises RequestError: invalid, internal, too many when the queue is full, deadline when the
        time is over before the answer is there.
        """
        # Assumes that time grows with the input; warm-up may have seen a small one.
        seconds = self.compute_seconds * max(1.0, _elements(request.inputs) / self._elements)
        if seconds < INLINE_SECONDS and not self.model.blocking:
            started = perf_counter()
            results = self.model.run(request.inputs, request.outputs)
            self.metrics.queue(0.0)
            self.metrics.compute(perf_counter() - started)
            return results
        return await self._infer_on_thread(request)

    async def _infer_on_thread(self, request: InferenceRequest) -> list[Array]:
        if self._under_way >= self._parallel + self.options.queue:
            raise RequestError(
                Failure.TOO_MANY,
                f"model '{self.name}' has {self._under_way} requests under way and takes no more; try again later",
            )
        loop = asyncio.get_running_loop()
        job = _Job(request, loop.create_future())
        timeout = min(self.options.deadline_seconds, request.timeout or float("inf"))
        timer = loop.call_later(timeout, self._expire, job, timeout)
        self._under_way += 1
        self._threads.submit(self._work, job, loop)
        try:
            return await job.answer
        except asyncio.CancelledError:  # nobody waits for the answer any more
            job.cancellation.cancel()
            raise
        finally:
            timer.cancel()

    def _expire(self, job: _Job, timeout: float) -> None:
        if not job.answer.done():
            job.cancellation.cancel()
            message = f"model '{self.name}' gave no answer within {timeout:g} s"
            job.answer.set_exception(RequestError(Failure.DEADLINE, message))

    def _work(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        results: list[Array] = []
        error: Exception | None = None
        job.started = perf_counter()
        if not job.cancellation.cancelled:
            try:
                results = self.model.run(job.request.inputs, job.request.outputs, job.cancellation)
            except Exception as caught:
                error = caught
        job.finished = perf_counter()
        with suppress(RuntimeError):  # the loop has ended, and with it the process
            loop.call_soon_threadsafe(self._finish, job, results, error)

    def _finish(self, job: _Job, results: list[Array], error: Exception | None) -> None:
        self._under_way -= 1
        if self._retired is not None and not self._under_way:
            self._retired.set()
        if job.answer.done():
            return
        if error is not None:
            job.answer.set_exception(error)
            return
        self.metrics.queue(job.started - job.arrived)
        self.metrics.compute(job.finished - job.started)
        job.answer.set_result(results)

    async def retire(self) -> None:
        """Let the requests under way finish, then give the model's memory back. No new request may come."""
        self._retired = asyncio.Event()
        if self._under_way:
            await self._retired.wait()
        self._metrics.model_unloaded(self.name, self.version, self.digest, self.platform)
        self._threads.shutdown(wait=False)
        await asyncio.to_thread(self.model.close)

    def check_golden(self) -> None:
        """Compute all golden cases. Raises StartError that names the first difference."""
        for file in golden_files(self.config.path):
            case = read_case(file, self.inputs, self.outputs)
            try:
                results = self.model.run(case.inputs, list(case.outputs))
            except RequestError as error:
                raise StartError(f"{file}: the model fails: {error}") from None
            if difference := case.difference(dict(zip(case.outputs, results, strict=True))):
                raise StartError(f"{file}: {difference}")

    def _warm_up_request(self) -> tuple[dict[str, Array], list[str]]:
        files = golden_files(self.config.path)
        if not files:
            return zeros(self.inputs), list(self.outputs)
        case = read_case(files[0], self.inputs, self.outputs)
        return case.inputs, list(case.outputs)

    def _measure(self) -> float:
        """Seconds of one run: the best of several, since neighbours on the machine only ever add."""
        self.model.run(self.warm_up_inputs, self.warm_up_outputs)
        best = float("inf")
        for _ in range(10):
            started = perf_counter()
            self.model.run(self.warm_up_inputs, self.warm_up_outputs)
            best = min(best, perf_counter() - started)
            if best > 100 * INLINE_SECONDS:
                break
        return best


def _elements(tensors: Mapping[str, Array]) -> int:
    return sum(tensor.size for tensor in tensors.values()) or 1
