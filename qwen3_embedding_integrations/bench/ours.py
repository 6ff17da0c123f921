"""Runs our own engine for `bench`, in a process of its own as every peer does.

`python -m qwen3_embedding_integrations.bench.ours MODEL MODE` answers the request on stdin, JSON,
with what each of MEASURES that the request has a key for returns.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ..core.config import EncoderConfig
from ..core.loading import load_model
from ..encoder import Qwen3Encoder
from .peers import measure, resident_bytes

PACKAGE = "qwen3-embedding-integrations"
# Parts of the names of torch's operations; the first stage with one of them counts it.
STAGES = {
    "attention": ("attention", "softmax", "bmm"),
    "matrix products": ("linear", "mm"),
    "embedding, gathers": ("embedding", "index"),
}
REST = "norms, quantise, SwiGLU, residuals"
TOKENISE = "tokenise"
COMPILED = "compiled layers, Python"  # all that torch has no part in
NUM_TRIES = 5

Reply = dict[str, Any]


class Ours:
    """Our encoder in one mode, and what it is asked."""

    def __init__(self, model: str, mode: str) -> None:
        arithmetic = {"quantization": "int8"} if mode == "int8" else {"dtype": mode}
        config = EncoderConfig.from_options(model, device="cpu", **arithmetic)  # pyright: ignore[reportArgumentType]
        self._loaded = load_model(config.engine)
        self.encoder = Qwen3Encoder.over(self._loaded, config)

    def documents(self, request: Reply) -> Reply:
        """Return what every engine is measured by; queries stand behind "prefix_ids"."""
        prefix_ids = tuple(request["prefix_ids"])
        reset_peak()
        return measure(self._encode, lambda ids: self._encode([ids], prefix_ids), request)

    def strings(self, request: Reply) -> Reply:
        """Return the seconds of each query by itself, from string to vector."""
        return {"strings_s": [self._seconds_of_query(query) for query in request["strings"]]}

    def concurrent(self, request: Reply) -> Reply:
        """Return how many times faster queries from a thread each are than one after another."""
        queries: list[str] = request["concurrent"]
        one_by_one_s = sum(map(self._seconds_of_query, queries))
        barrier = threading.Barrier(len(queries) + 1)

        def encode(query: str) -> None:
            barrier.wait()
            self.encoder.encode_queries([query])

        with ThreadPoolExecutor(len(queries)) as callers:
            futures = [callers.submit(encode, query) for query in queries]
            barrier.wait()
            start = time.perf_counter()
            for future in futures:
                future.result()
            at_once_s = time.perf_counter() - start
        return {"concurrent_speedup": one_by_one_s / at_once_s}

    def lengths(self, request: Reply) -> Reply:
        """Return the seconds and the peak of memory for the texts of each length."""
        seconds: list[float] = []
        peaks: list[int] = []
        for texts in request["lengths"]:
            reset_peak()
            seconds.append(seconds_of(lambda texts=texts: self._encode(texts)))
            peaks.append(resident_bytes("VmHWM"))
        return {"lengths_s": seconds, "lengths_peak_bytes": peaks}

    def stages(self, request: Reply) -> Reply:
        """Return the milliseconds of each stage of one forward, summed over its threads."""
        ids, texts = request["stages"], request["stage_texts"]
        self._encode(ids)
        # The forward runs on the engine's thread, not on this one.
        every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # pyright: ignore
        with profile(
            activities=[ProfilerActivity.CPU], experimental_config=every_thread
        ) as profiler:
            self._encode(ids)
        stages = dict.fromkeys([TOKENISE, *STAGES, REST], 0.0)
        for event in profiler.key_averages():
            stages[stage_of(event.key)] += event.self_cpu_time_total / 1e3
        tries = range(NUM_TRIES)
        tokenise = self._loaded.tokenizer.encode
        forward_ms = 1e3 * min(seconds_of(lambda: self._encode(ids)) for _ in tries)
        stages["attention"] += self._compiled_attention_ms(ids)
        stages[COMPILED] = max(0.0, forward_ms - sum(stages.values()))
        stages[TOKENISE] = 1e3 * min(seconds_of(lambda: tokenise(texts)) for _ in tries)
        return {
            "stages_ms": stages,
            "forward_ms": forward_ms,
            "num_threads": torch.get_num_threads(),
        }

    def _encode(self, ids: Sequence[Sequence[int]], prefix_ids: tuple[int, ...] = ()) -> Any:
        sequences = [np.array(token_ids, np.int32) for token_ids in ids]
        return self._loaded.engine.submit(sequences, prefix_ids).future.result()

    def _compiled_attention_ms(self, ids: Sequence[Sequence[int]]) -> float:
        """Return what one forward spends in compiled attention, which torch's profiler misses."""
        module = sys.modules.get(load_model.__module__.replace("loading", "fused_forward"))
        if module is None:
            return 0.0
        plain, spent = module.attend_together, [0.0]

        def timed(*arguments: Any) -> None:
            spent.append(seconds_of(lambda: plain(*arguments)))

        module.attend_together = timed  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self._encode(ids)
        finally:
            module.attend_together = plain  # pyright: ignore[reportAttributeAccessIssue]
        return 1e3 * sum(spent)

    def _seconds_of_query(self, query: str) -> float:
        return seconds_of(lambda: self.encoder.encode_queries([query]))


MEASURES: dict[str, Callable[[Ours, Reply], Reply]] = {
    "documents": Ours.documents,
    "strings": Ours.strings,
    "concurrent": Ours.concurrent,
    "lengths": Ours.lengths,
    "stages": Ours.stages,
}


def stage_of(operation: str) -> str:
    """Return the stage that an operation of torch belongs to."""
    matching = (s for s, parts in STAGES.items() if any(part in operation for part in parts))
    return next(matching, REST)


def reset_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(model: str, mode: str) -> None:
    """Load, and answer the request."""
    request = json.load(sys.stdin)
    start = time.perf_counter()
    ours = Ours(model, mode)
    reply: Reply = {"load_s": time.perf_counter() - start, "version": version(PACKAGE)}
    reply["resident_bytes"] = resident_bytes("VmRSS")
    for name, answer in MEASURES.items():
        if name in request:
            reply |= answer(ours, request)
    ours.encoder.close()
    sys.stdout.write(json.dumps(reply))


if __name__ == "__main__":
    main(*sys.argv[1:])
