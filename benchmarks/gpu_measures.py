"""What is measured of one engine: nearness to float32, throughput, latency, many callers."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_engines import Engine, Ours, Transformers, Vectors
from benchmarks.gpu_workload import (
    MIXES,
    QUERIES,
    Scale,
    TokenIds,
    random_texts,
    tera_operations,
    texts_of_lengths,
)
from benchmarks.texts import make_texts
from qwen3_embedding_integrations.bench.workload import make_queries
from qwen3_embedding_integrations.core.checkpoint import Architecture
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.core.tokenizer import Tokenizer

ALLOWED_ERROR_RATIO = 1.2  # of our bfloat16 error to transformers', both against float32


@dataclass(frozen=True)
class Case:
    """The model, the device and the scale of a run."""

    folder: Path
    device: str
    scale: Scale
    architecture: Architecture
    tokenizer: Tokenizer
    num_ids: int  # random ids are below it

    def texts(self) -> dict[str, list[TokenIds]]:
        """Return the documents of each mix."""
        return {
            mix.name: random_texts(mix, self.scale, self.num_ids, seed=seed)
            for seed, mix in enumerate(MIXES)
        }


class Checked:
    """Texts whose vectors are compared with transformers' in float32, one text at a time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        lengths = np.geomspace(3, case.scale.longest_checked, case.scale.num_checked).astype(int)
        rng = np.random.default_rng(10)
        self.texts = texts_of_lengths(lengths.tolist(), case.num_ids, rng)
        self.reference: Vectors | None = None
        self.theirs: np.ndarray | None = None  # (N,) transformers' own error in bfloat16

    def measure_reference(self) -> dict[str, Any]:
        """Return transformers' own errors in bfloat16, after making the float32 reference."""
        vectors: dict[str, Vectors] = {}
        for dtype in ("float32", "bfloat16"):
            engine = Transformers(self.case.folder, self.case.device, dtype)
            try:
                vectors[dtype] = engine.embed(self.texts, 1)
            finally:
                engine.close()
        self.reference = vectors["float32"]
        self.theirs = _distances(vectors["bfloat16"], self.reference)
        return {"texts": len(self.texts), "transformers_bfloat16_error": _spread(self.theirs)}

    def errors(self, engine: Engine) -> dict[str, Any]:
        """Return an engine's errors and cosines on the same texts, all in one call."""
        if self.reference is None or self.theirs is None:
            raise ValueError("there is no reference: see its section")
        vectors = engine.embed(self.texts, 8)
        errors = _distances(vectors, self.reference)
        cosines = (vectors * self.reference).sum(1)
        result: dict[str, Any] = {
            "error": _spread(errors),
            "mean_cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
            "mean_error_over_transformers": float(errors.mean() / self.theirs.mean()),
            "texts_beyond_allowed": int((errors > ALLOWED_ERROR_RATIO * self.theirs).sum()),
        }
        if isinstance(engine, Ours):  # behind a kept prefix, as queries are, against read whole
            prompt = self.case.tokenizer.prompt(query_prompt(WEB_SEARCH))
            behind = engine.embed_behind(prompt.prefix_ids, self.texts)
            head = np.array(prompt.prefix_ids, np.int32)
            whole = engine.embed([np.concatenate([head, text]) for text in self.texts], 8)
            result["least_cosine_prefix_reused_to_read"] = float((behind * whole).sum(1).min())
        return result


def throughput(
    case: Case, engine: Engine, texts: list[TokenIds], peak_tflops: float | None
) -> dict[str, Any]:
    """Return the rate of one call with all texts, from ids to vectors on the host."""
    lengths = [len(text) for text in texts]
    sizes = (0,) if isinstance(engine, Ours) else case.scale.batch_sizes
    best: dict[str, Any] = {}
    for size in sizes:
        # Others are slower and need fewer runs for the same certainty.
        num_runs = case.scale.num_runs if isinstance(engine, Ours) else 2
        try:
            seconds = wall_s(lambda size=size: engine.embed(texts, size), num_runs)
        except torch.OutOfMemoryError:
            continue
        if not best or seconds < best["seconds"]:
            best = {"seconds": seconds, "batch_size": size or None}
    if not best:
        raise torch.OutOfMemoryError("no batch size fits")
    rate = tera_operations(case.architecture, lengths) / best["seconds"]
    return {
        **best,
        "texts": len(texts),
        "tokens": sum(lengths),
        "tokens_per_s": sum(lengths) / best["seconds"],
        "texts_per_s": len(texts) / best["seconds"],
        "share_of_bfloat16_peak": rate / peak_tflops if peak_tflops else None,
    }


def latency(case: Case, engine: Engine) -> dict[str, Any]:
    """Return percentiles of single queries, from string to vector."""
    num_queries = case.scale.num_queries
    if not isinstance(engine, Ours):
        num_queries = max(3, num_queries // 10)
    queries = make_queries(case.tokenizer, num_queries + 3)
    for query in queries[:3]:
        engine.query([query])
    times = [_once_s(lambda query=query: engine.query([query])) for query in queries[3:]]
    return _percentiles_ms(times)


def batched_queries(case: Case, engine: Engine) -> dict[str, Any]:
    """Return the rate of short queries behind a known instruction, in one call."""
    rng = np.random.default_rng(20)
    num = case.scale.num_batched_queries
    lengths = np.exp(rng.normal(np.log(QUERIES.median), QUERIES.sigma, num))
    lengths = np.clip(lengths, 3, QUERIES.cap).astype(int).tolist()
    texts = texts_of_lengths(lengths, case.num_ids, rng)
    prefix_ids = case.tokenizer.prompt(query_prompt(WEB_SEARCH)).prefix_ids
    if isinstance(engine, Ours):
        seconds = wall_s(lambda: engine.embed_behind(prefix_ids, texts), case.scale.num_runs)
    else:
        head = np.array(prefix_ids, np.int32)
        whole = [np.concatenate([head, text]) for text in texts]
        seconds = wall_s(lambda: engine.embed(whole, max(case.scale.batch_sizes)), 2)
    return {"queries": num, "queries_per_s": num / seconds}


def strings(case: Case, engine: Engine) -> dict[str, Any]:
    """Return the rate from strings to vectors, on real text of the first mix's lengths."""
    lengths = [len(text) for text in case.texts()[MIXES[0].name]]
    documents = make_texts(case.folder, lengths[: max(8, len(lengths) // 4)], seed=30)
    num_tokens = sum(len(ids) for ids in case.tokenizer.encode(documents))
    size = case.scale.batch_sizes[0]
    seconds = wall_s(lambda: engine.documents(documents, size), 2)
    return {"tokens_per_s": num_tokens / seconds, "texts_per_s": len(documents) / seconds}


def concurrent(case: Case, engine: Engine) -> dict[str, Any]:
    """Return rate and percentiles of callers that each ask query after query."""
    results: dict[str, Any] = {}
    share = 1 if isinstance(engine, Ours) else 10
    for num_callers in case.scale.callers:
        each = max(2, case.scale.num_queries // share // num_callers)
        queries = make_queries(case.tokenizer, each * num_callers)
        # Once before: what is set up for each size of batch is not set up while it is measured.
        _ask(engine, queries, num_callers)
        seconds, times = _ask(engine, queries, num_callers)
        rate = {"queries_per_s": len(queries) / seconds}
        results[str(num_callers)] = rate | _percentiles_ms(times)
    return results


def _ask(engine: Engine, queries: list[str], num_callers: int) -> tuple[float, list[float]]:
    """Return the seconds of all queries, shared out among callers, and of each by itself."""
    times: list[float] = []
    barrier = threading.Barrier(num_callers + 1)

    def call(mine: Sequence[str]) -> None:
        barrier.wait()
        for query in mine:
            times.append(_once_s(lambda query=query: engine.query([query])))

    threads = [
        threading.Thread(target=call, args=(queries[i::num_callers],)) for i in range(num_callers)
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(times) < len(queries):
        raise RuntimeError(f"{len(queries) - len(times)} queries of {num_callers} callers failed")
    return seconds, times


def profile(case: Case, engine: Engine) -> list[dict[str, Any]]:
    """Return the kernels that take longest in one forward of the first mix, with their shares."""
    texts: list[TokenIds] = []
    for text in case.texts()[MIXES[0].name]:
        if sum(map(len, texts)) + len(text) > 16_000:
            break
        texts.append(text)
    engine.embed(texts, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        engine.embed(texts, 0)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) or 1.0
    return [
        {
            "kernel": event.key[:120],
            "calls": event.count,
            "us": event.self_device_time_total,
            "share": event.self_device_time_total / total,
        }
        for event in events[:20]
    ]


def _once_s(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()  # returns when the vectors are on the host: nothing is left to wait for
    return time.perf_counter() - start


def wall_s(function: Callable[[], object], num_runs: int) -> float:
    function()
    return statistics.median(_once_s(function) for _ in range(num_runs))


def _distances(vectors: Vectors, reference: Vectors) -> np.ndarray:
    return np.linalg.norm(vectors - reference, axis=1)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "max": float(values.max())}


def _percentiles_ms(times_s: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(times_s) * 1e3, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99}
