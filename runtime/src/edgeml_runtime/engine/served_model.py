# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A model that is loaded, warmed up and measured, and the decision where a request computes."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine.golden import warm_up_request
from edgeml_runtime.engine.onnx_model import PLATFORM, OnnxModel, model_file
from edgeml_runtime.errors import RequestError, StartError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.tensors import Array

# A hop to a thread and back costs about 50 microseconds: below this it is cheaper, for
# everybody, to compute on the event loop.
INLINE_SECONDS = 200e-6


class ServedModel:
    """One model in service. Built off the event loop, used on it."""

    def __init__(self, config: ModelConfig, threads: int, metrics: Metrics) -> None:
        """Load, warm up and measure. Raises StartError."""
        self.name = config.name
        self.version = config.version
        self.digest = config.digest
        self.platform = PLATFORM
        self.model = OnnxModel(model_file(config.path, config.name, config.version), threads)
        self.inputs = self.model.inputs
        self.outputs = self.model.outputs
        self.warm_up_inputs, self.warm_up_outputs = warm_up_request(config.path, self.inputs, list(self.outputs))
        try:
            self.compute_seconds = self._measure()
        except RequestError as error:
            raise StartError(f"{config.path}: the model fails on its warm-up input: {error}") from None
        self._elements = _elements(self.warm_up_inputs)
        processors = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(max(1, processors // threads), thread_name_prefix=config.name)
        self.metrics = metrics.model_loaded(self.name, self.version, self.digest, self.platform)

    async def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Compute the named outputs. Never holds the event loop for long. Raises RequestError."""
        arrived = perf_counter()
        # Assumes that time grows with the input; warm-up may have seen a small one.
        estimate = self.compute_seconds * max(1.0, _elements(inputs) / self._elements)
        if estimate < INLINE_SECONDS:
            results = self.model.run(inputs, outputs)
            self.metrics.queue(0.0)
            self.metrics.compute(perf_counter() - arrived)
            return results
        results, started, finished = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._timed_run, inputs, outputs
        )
        self.metrics.queue(started - arrived)
        self.metrics.compute(finished - started)
        return results

    def _timed_run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[list[Array], float, float]:
        started = perf_counter()
        results = self.model.run(inputs, outputs)
        return results, started, perf_counter()

    def _measure(self) -> float:
        """Seconds of one run: the best of several, since neighbours on the machine only ever add."""
        self.model.run(self.warm_up_inputs, self.warm_up_outputs)
        best = float("inf")
        for _ in range(10):
            _, started, finished = self._timed_run(self.warm_up_inputs, self.warm_up_outputs)
            best = min(best, finished - started)
            if best > 100 * INLINE_SECONDS:
                break
        return best


def _elements(tensors: Mapping[str, Array]) -> int:
    return sum(tensor.size for tensor in tensors.values()) or 1
