# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the server."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.process_collector import ProcessCollector

# From a tiny model (tens of microseconds) to a large one (5 s).
_BUCKETS = tuple(base * 10.0**exponent for exponent in range(-5, 1) for base in (1.0, 2.5, 5.0))


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Observers of one model; each takes seconds."""

    queue: Callable[[float], None]
    compute: Callable[[float], None]
    total: Callable[[float], None]


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "edgeml_inference_requests",
            "Inference requests answered; model is empty when the request named none that is served.",
            ["model", "protocol", "code"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "edgeml_inference_duration_seconds",
            "Time of successful inference requests by stage: queue (waiting for an engine thread), "
            "compute (in the engine), total (from the complete request to the encoded answer).",
            ["model", "stage"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._models = Gauge(
            "edgeml_model_info",
            "Always 1; the labels tell which models are loaded.",
            ["model", "version", "digest", "platform"],
            registry=self._registry,
        )
        # Looking a child up by its labels costs more than counting.
        self._counters: dict[tuple[str, str, str], Callable[[], None]] = {}

    def model_loaded(self, name: str, version: str, digest: str, platform: str) -> ModelMetrics:
        """Announce a loaded model and get its observers."""
        self._models.labels(name, version, digest, platform).set(1)
        queue, compute, total = (self._duration.labels(name, stage) for stage in ("queue", "compute", "total"))
        return ModelMetrics(queue.observe, compute.observe, total.observe)

    def count_request(self, model: str, protocol: str, code: str) -> None:
        """Count an answered inference request; ``code`` is the protocol's own status."""
        count = self._counters.get((model, protocol, code))
        if count is None:
            count = self._counters[model, protocol, code] = self._requests.labels(model, protocol, code).inc
        count()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
