"""What Prometheus reads: requests, latencies, tokens, the queue, forwards, the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .models import Models, Slot

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip

# EngineCounts' and CacheStats' fields, each as (metric, help).
ENGINE_GAUGES = {
    "waiting_calls": ("qwen3_queue_calls", "Calls that are not answered yet."),
    "waiting_tokens": ("qwen3_queue_tokens", "Tokens that wait for the device."),
    "max_batch_tokens": ("qwen3_max_batch_tokens", "Tokens of a forward at most, now."),
}
ENGINE_COUNTERS = {
    "forwards": ("qwen3_forwards", "Forwards of the device."),
    "retries": ("qwen3_forward_retries", "Forwards that failed and ran again in parts."),
    "out_of_memory": ("qwen3_forward_out_of_memory", "Forwards that found no room."),
    "tokens": ("qwen3_forward_tokens", "Tokens of all forwards, instructions included."),
}
CACHE_COUNTERS = {
    "texts": ("qwen3_cache_texts", "Texts asked of the cache."),
    "hits": ("qwen3_cache_hits", "Texts whose vector was in a store."),
    "joined": ("qwen3_cache_joined", "Texts that another call was computing."),
}


class Metrics:
    """The server's own numbers, and the models' as they are when asked for."""

    def __init__(self, models: Models) -> None:
        self.registry = registry = CollectorRegistry()  # one server, one registry
        self.requests = Counter(
            "qwen3_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "qwen3_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.under_way = Gauge(
            "qwen3_requests_under_way", "Requests not answered yet.", registry=registry
        )
        labels = ["model", "role"]
        self.texts = Counter("qwen3_texts", "Texts read.", labels, registry=registry)
        self.tokens = Counter("qwen3_tokens", "Tokens read.", labels, registry=registry)
        self.truncated = Counter("qwen3_truncated", "Texts cut.", labels, registry=registry)
        registry.register(_ModelNumbers(models))

    def text(self) -> tuple[bytes, str]:
        """Return the numbers in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _ModelNumbers(Collector):
    """Reads every loaded model when Prometheus asks."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is known before a model is loaded

    def collect(self) -> Iterator[Metric]:
        slots = self._models.slots
        loaded = GaugeMetricFamily("qwen3_model_loaded", "1 while loaded.", labels=["model"])
        loads = CounterMetricFamily("qwen3_model_loads", "Loads so far.", labels=["model"])
        for slot in slots:
            loaded.add_metric([slot.served.name], float(slot.state == "loaded"))
            loads.add_metric([slot.served.name], slot.num_loads)
        yield from (loaded, loads)
        engines = {
            slot: slot.model.engine_counts()
            for slot in slots
            if hasattr(slot.model, "engine_counts")
        }
        yield from _families(GaugeMetricFamily, ENGINE_GAUGES, engines)
        yield from _families(CounterMetricFamily, ENGINE_COUNTERS, engines)
        yield _fills(engines)
        stats = {slot: slot.model.stats() for slot in slots if hasattr(slot.model, "stats")}
        caches = {slot: counts for slot, counts in stats.items() if hasattr(counts, "hits")}
        yield from _families(CounterMetricFamily, CACHE_COUNTERS, caches)


def _families(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    fields: dict[str, tuple[str, str]],
    numbers: dict[Slot, Any],
) -> Iterator[Metric]:
    for field, (name, said) in fields.items():
        family = kind(name, said, labels=["model"])
        for slot, record in numbers.items():
            family.add_metric([slot.served.name], getattr(record, field))
        yield family


def _fills(engines: dict[Slot, Any]) -> Metric:
    """Return how full forwards were, of their budget of tokens."""
    family = HistogramMetricFamily(
        "qwen3_batch_fill", "How much of its budget a forward used.", labels=["model"]
    )
    for slot, counts in engines.items():
        total, buckets = 0, list[tuple[str, float]]()
        for tenth, number in enumerate(counts.fills, 1):
            total += number
            # The last one holds what is more than full as well: a text longer than the budget.
            buckets.append(("+Inf" if tenth == len(counts.fills) else str(tenth / 10), total))
        used = counts.tokens / counts.max_batch_tokens
        family.add_metric([slot.served.name], buckets, sum_value=used)
    return family
