# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the server."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

# From a tiny model (tens of microseconds) to a large one (5 s).
_BUCKETS = tuple(base * 10.0**exponent for exponent in range(-5, 1) for base in (1.0, 2.5, 5.0))
STAGES = ("queue", "compute", "total")


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Observers of one model; each takes seconds, and is called on the event loop."""

    queue: Callable[[float], None]
    compute: Callable[[float], None]
    total: Callable[[float], None]


class _Histogram:
    """Counts per bucket. Only the event loop writes, so no lock is needed, which is most of an observation's cost."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        total = 0
        buckets = []
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._durations: dict[str, tuple[_Histogram, ...]] = {}
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._models: list[tuple[tuple[str, str, str, str, str], Callable[[], int]]] = []
        self._unsent: tuple[Callable[[], int], Callable[[], int]] | None = None
        self._broker_connected: Callable[[], bool] | None = None
        self._registry.register(self)

    def model_loaded(
        self, name: str, version: str, digest: str, platform: str, provider: str, under_way: Callable[[], int]
    ) -> ModelMetrics:
        """Announce a loaded model and get its observers; ``under_way`` counts its requests in queue and engine."""
        self._models.append(((name, version, digest, platform, provider), under_way))
        histograms = self._durations.setdefault(name, tuple(_Histogram() for _ in STAGES))
        return ModelMetrics(*(histogram.observe for histogram in histograms))

    def model_unloaded(
        self, name: str, version: str, digest: str, platform: str, provider: str, under_way: Callable[[], int]
    ) -> None:
        """Take the announcement back, with what it was made with."""
        self._models.remove(((name, version, digest, platform, provider), under_way))

    def count_request(self, model: str, protocol: str, code: str) -> None:
        """Count an answered inference request; ``code`` is the protocol's own status."""
        self._requests[model, protocol, code] += 1

    def observe_unsent(self, waiting: Callable[[], int], dropped: Callable[[], int]) -> None:
        """Announce the answers that clients have not taken: bytes that wait now, answers dropped so far."""
        self._unsent = (waiting, dropped)

    def observe_broker(self, connected: Callable[[], bool]) -> None:
        """Announce an MQTT broker; ``connected`` tells whether it can be reached now."""
        self._broker_connected = connected

    def collect(self) -> Iterable[Metric]:
        """What the registry asks for at each scrape."""
        requests = CounterMetricFamily(
            "edgeml_inference_requests",
            "Inference requests answered; model is empty when the request named none that is served.",
            labels=("model", "protocol", "code"),
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        durations = HistogramMetricFamily(
            "edgeml_inference_duration_seconds",
            "Time of successful inference requests by stage: queue (waiting for an engine thread), "
            "compute (in the engine), total (from the complete request to the encoded answer).",
            labels=("model", "stage"),
        )
        for name, histograms in self._durations.items():
            for stage, histogram in zip(STAGES, histograms, strict=True):
                durations.add_metric((name, stage), histogram.cumulative(), histogram.sum)
        yield durations
        under_way = GaugeMetricFamily(
            "edgeml_inference_under_way",
            "Inference requests that wait for an engine thread or run on one.",
            labels=("model",),
        )
        counts: Counter[str] = Counter()
        for (name, *_), count_now in self._models:
            counts[name] += count_now()
        for name, count in counts.items():
            under_way.add_metric((name,), count)
        yield under_way
        models = GaugeMetricFamily(
            "edgeml_model_info",
            "Always 1; the labels tell which models are loaded.",
            labels=("model", "version", "digest", "platform", "provider"),
        )
        for model in dict.fromkeys(model for model, _ in self._models):
            models.add_metric(model, 1)
        yield models
        if self._unsent is not None:
            waiting, dropped = self._unsent
            yield GaugeMetricFamily(
                "edgeml_unsent_answer_bytes", "Bytes of answers that wait for clients to take them.", waiting()
            )
            yield CounterMetricFamily(
                "edgeml_dropped_answers", "Answers dropped because too many waited for their clients.", dropped()
            )
        if self._broker_connected is not None:
            yield GaugeMetricFamily(
                "edgeml_mqtt_connected", "1 while connected to the MQTT broker, else 0.", self._broker_connected()
            )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
