"""One engine in one mode under measurement: what it is asked in each round, and its results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .options import OURS, arithmetic_of
from .workers import Worker, Workers
from .workload import TokenIds, Workload

BATCH_SIZES = (1, 8, 32)  # a peer counts by its best; ours makes its own batches
HOPELESS = 1.5  # times the best: a larger batch, with more padding, is not tried any more


@dataclass(frozen=True)
class Scale:
    """What this machine does at best with this model: what results are measured against."""

    tokens_per_s: dict[str, float]  # by arithmetic, were there matrix products only
    weight_read_ms: float  # to read the matrices once, in int8


@dataclass(eq=False)
class Contender:
    """One engine in one mode."""

    engine: str
    mode: str
    vectors_path: Path
    worker: Worker
    failed: str | None = None
    batch_size: int | None = None
    trials_s: dict[int, float] = field(default_factory=dict[int, float])  # by batch size
    documents_s: list[float] = field(default_factory=list[float])
    queries_s: list[list[float]] = field(default_factory=list[list[float]])
    peak_bytes: int = 0
    apart: OursAlone | None = None

    @property
    def name(self) -> str:
        """The engine and its mode."""
        return f"{self.engine} {self.mode}"

    def choose_batch_size(self, workers: Workers, workload: Workload) -> None:
        """Take the batch size that does a third of the documents fastest."""
        ids = workload.documents[: max(1, len(workload.documents) // 3)]
        peaks: dict[int, int] = {}
        for size in BATCH_SIZES:
            try:
                self._documents(workers, ids[:size], size)
                reply = self._documents(workers, ids, size)
            except EngineError:  # a large batch may not fit where a smaller one does
                if not self.trials_s:
                    raise
                break
            self.trials_s[size], peaks[size] = reply["seconds"], reply["peak_resident_bytes"]
            if reply["seconds"] > HOPELESS * min(self.trials_s.values()):
                break
        self.batch_size = min(self.trials_s, key=lambda size: self.trials_s[size])
        # A fresh process shows what this batch size needs, not what the largest did.
        self.worker.close()
        self.worker.peak_bytes = peaks[self.batch_size]

    def measure_round(self, workers: Workers, workload: Workload) -> None:
        """Run all documents in one call and every query by itself."""
        is_ours = self.engine == OURS
        queries = workload.query_ids if is_ours else workload.whole_query_ids
        more: dict[str, Any] = {"prefix_ids": workload.prefix_ids} if is_ours else {}
        warm_up = workload.documents[: max(1, len(workload.documents) // 12)]
        self._documents(workers, warm_up, self.batch_size)
        path = None if self.documents_s else self.vectors_path
        reply = self._documents(workers, workload.documents, self.batch_size, path)
        self.peak_bytes = max(self.peak_bytes, reply["peak_resident_bytes"])
        self._documents(workers, queries[-1:], 1, **more)
        times = [self._documents(workers, [ids], 1, **more)["seconds"] for ids in queries]
        self.documents_s.append(reply["seconds"])
        self.queries_s.append(times)
        if self.apart is not None:
            self.apart.measure_round(workers, self.worker, workload)

    def result(self, workload: Workload, scale: Scale, reference: Path) -> dict[str, Any]:
        """Return what was measured, JSON-able."""
        about = {"engine": self.engine, "mode": self.mode}
        if self.failed is not None:
            return about | {"failed": self.failed}
        rates = [workload.num_tokens / seconds for seconds in self.documents_s]
        latencies = [[1e3 * seconds for seconds in times] for times in self.queries_s]
        limit = scale.tokens_per_s[arithmetic_of(self.mode)]
        ready = self.worker.ready
        queries = spread_of_rounds(latencies)
        return {
            **about,
            "version": ready["version"],
            "batch_size": self.batch_size,
            "batch_size_trials_s": self.trials_s,
            "load_s": ready["load_s"],
            "resident_bytes": ready["resident_bytes"],
            "peak_resident_bytes": self.peak_bytes,
            "cosine": compare(np.load(self.vectors_path), np.load(reference)),
            "documents_tokens_per_s": spread(rates),
            "gemm_share": statistics.median(rates) / limit if limit else None,
            "query_latency_ms": queries,
            "query_in_weight_reads": queries["median"] / scale.weight_read_ms,
            **(self.apart.result() if self.apart is not None else {}),
        }

    def _documents(
        self,
        workers: Workers,
        ids: list[TokenIds],
        batch_size: int | None,
        vectors: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        path = None if vectors is None else str(vectors)
        request = {"ids": ids, "batch_size": batch_size, "vectors": path, **more}
        return workers.ask(self.worker, request)


@dataclass(eq=False)
class OursAlone:
    """What only our engine is asked: strings, callers at once, texts of one length."""

    texts: dict[int, list[TokenIds]]  # by length
    strings_s: list[list[float]] = field(default_factory=list[list[float]])
    speedups: list[float] = field(default_factory=list[float])
    lengths_s: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    lengths_peak: dict[int, int] = field(default_factory=dict[int, int])
    stages: dict[str, Any] = field(default_factory=dict[str, Any])

    def measure_round(self, workers: Workers, worker: Worker, workload: Workload) -> None:
        """Ask the worker everything once."""
        request: dict[str, Any] = {"measure": "strings", "queries": workload.queries}
        self.strings_s.append(workers.ask(worker, request)["seconds"])
        request = {"measure": "concurrent", "queries": workload.concurrent_queries}
        reply = workers.ask(worker, request)
        self.speedups.append(reply["one_by_one_s"] / reply["at_once_s"])
        for length, ids in self.texts.items():
            reply = workers.ask(worker, {"ids": ids, "vectors": None})
            self.lengths_s.setdefault(length, []).append(reply["seconds"])
            peak = max(reply["peak_resident_bytes"], self.lengths_peak.get(length, 0))
            self.lengths_peak[length] = peak

    def result(self) -> dict[str, Any]:
        """Return what was measured, JSON-able."""
        lengths = [
            {
                "length": length,
                "num_texts": len(self.texts[length]),
                "tokens_per_s": spread([length * len(self.texts[length]) / s for s in seconds]),
                "peak_resident_bytes": self.lengths_peak[length],
            }
            for length, seconds in self.lengths_s.items()
        ]
        latencies = [[1e3 * seconds for seconds in times] for times in self.strings_s]
        return {
            "query_from_string_ms": spread_of_rounds(latencies),
            "concurrent_speedup": spread(self.speedups),
            "lengths": lengths,
            "stages": self.stages,
        }


def spread(rounds: Sequence[float]) -> dict[str, Any]:
    """Return the rounds with their median, minimum and maximum."""
    values = list(rounds)
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values), "rounds": values}


def spread_of_rounds(rounds: list[list[float]]) -> dict[str, Any]:
    """Return the rounds of several values each, with median, minimum and maximum of all values."""
    return spread([value for values in rounds for value in values]) | {"rounds": rounds}


def compare(vectors: Any, reference: Any) -> dict[str, float]:
    """Return mean and minimum of the cosine between unit vectors."""
    cosines = np.sum(vectors.astype(np.float64) * reference, axis=1)
    return {"mean": float(cosines.mean()), "min": float(cosines.min())}
