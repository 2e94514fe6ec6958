# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Latency of a model in this process, without a server: the floor of what serving can reach."""

from time import perf_counter_ns

import numpy as np

from edgeml_runtime.config import Config
from edgeml_runtime.engine.served_model import ServedModel
from edgeml_runtime.errors import StartError


def measure(config: Config, names: set[str], warmup: int, samples: int) -> dict[str, dict[str, dict[str, float | int]]]:
    """Percentiles in microseconds of running each named model on its warm-up input, by name and version.

    That is its first golden case, or zeros when it has none. Raises StartError.
    """
    measured: dict[str, dict[str, dict[str, float | int]]] = {}
    for model_config in config.models:
        if model_config.name not in names:
            continue
        model = ServedModel(model_config, config.engine, config.cache_directory)
        if not model.warm_up_outputs:
            raise StartError(f"model '{model.name}' cannot run on zeros; add a golden case to measure it with")
        durations = np.empty(samples)
        for index in range(-warmup, samples):
            started = perf_counter_ns()
            model.model.run(model.warm_up_inputs, model.warm_up_outputs)
            if index >= 0:
                durations[index] = (perf_counter_ns() - started) / 1000
        p50, p95, p99 = (round(float(value), 2) for value in np.percentile(durations, (50, 95, 99)))
        versions = measured.setdefault(model.name, {})
        versions[model.version] = {"p50_us": p50, "p95_us": p95, "p99_us": p99, "samples": samples}
    return measured
