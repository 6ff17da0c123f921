"""Runs our own engine for `bench`, in a process of its own as every peer does.

`python -m qwen3_embedding_integrations.bench.ours MODEL MODE` speaks peers.py's JSON lines. A
request's "measure" (a key of MEASURES, "documents" when there is none) says what only we are asked.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
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
from ..core.packing import Int32Array
from ..encoder import Qwen3Encoder
from ..peers import resident_bytes

PACKAGE = "qwen3-embedding-integrations"
# Parts of the names of torch's operations; the first stage with one of them counts it.
STAGES = {
    "attention": ("attention", "softmax", "bmm"),
    "matrix products": ("linear", "mm"),
    "embedding, gathers": ("embedding", "index"),
}
REST = "norms, quantise, SwiGLU, residuals"
TOKENISE = "tokenise"
NUM_TRIES = 5

Reply = dict[str, Any]


class Ours:
    """Our encoder in one mode, and what it is asked."""

    def __init__(self, model: str, mode: str) -> None:
        arithmetic = {"quantization": "int8"} if mode == "int8" else {"dtype": mode}
        config = EncoderConfig.from_options(model, device="cpu", **arithmetic)  # pyright: ignore[reportArgumentType]
        self._loaded = load_model(config.engine)
        self._encoder = Qwen3Encoder.over(self._loaded, config)

    def documents(self, request: Reply) -> Reply:
        """Return the seconds of one call with all texts, after "prefix_ids" where there are any."""
        reset_peak()
        start = time.perf_counter()
        vectors = self._encode(request["ids"], tuple(request.get("prefix_ids", ())))
        seconds = time.perf_counter() - start
        if request["vectors"] is not None:
            np.save(request["vectors"], vectors)
        return {"seconds": seconds}

    def strings(self, request: Reply) -> Reply:
        """Return the seconds of each query by itself, from string to vector."""
        seconds: list[float] = []
        for query in request["queries"]:
            start = time.perf_counter()
            self._encoder.encode_queries([query])
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def concurrent(self, request: Reply) -> Reply:
        """Return the seconds of all queries one after another, and from a thread each at once."""
        queries: list[str] = request["queries"]
        one_by_one_s = sum(self.strings(request)["seconds"])
        barrier = threading.Barrier(len(queries) + 1)

        def encode(query: str) -> None:
            barrier.wait()
            self._encoder.encode_queries([query])

        with ThreadPoolExecutor(len(queries)) as callers:
            futures = [callers.submit(encode, query) for query in queries]
            barrier.wait()
            start = time.perf_counter()
            for future in futures:
                future.result()
            at_once_s = time.perf_counter() - start
        return {"one_by_one_s": one_by_one_s, "at_once_s": at_once_s}

    def stages(self, request: Reply) -> Reply:
        """Return the milliseconds of each stage of one forward, summed over its threads."""
        ids = request["ids"]
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
        stages[TOKENISE] = 1e3 * best_seconds(
            lambda: self._loaded.tokenizer.encode(request["texts"])
        )
        return {
            "stages_ms": stages,
            "forward_ms": 1e3 * best_seconds(lambda: self._encode(ids)),
            "num_threads": torch.get_num_threads(),
        }

    def _encode(self, ids: list[list[int]], prefix_ids: tuple[int, ...] = ()) -> Any:
        sequences: list[Int32Array] = [np.array(token_ids, np.int32) for token_ids in ids]
        return self._loaded.engine.submit(sequences, prefix_ids).future.result()

    def close(self) -> None:
        """End the engine's thread."""
        self._encoder.close()


MEASURES: dict[str, Callable[[Ours, Reply], Reply]] = {
    "documents": Ours.documents,
    "strings": Ours.strings,
    "concurrent": Ours.concurrent,
    "stages": Ours.stages,
}


def stage_of(operation: str) -> str:
    """Return the stage that an operation of torch belongs to."""
    matching = (s for s, parts in STAGES.items() if any(part in operation for part in parts))
    return next(matching, REST)


def best_seconds(function: Callable[[], object]) -> float:
    """Return the shortest time of a few calls."""
    seconds: list[float] = []
    for _ in range(NUM_TRIES):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def reset_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(field: str) -> int:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM); elsewhere than on Linux,
    the peak for both.
    """
    if Path("/proc/self/status").is_file():
        return resident_bytes(field)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(model: str, mode: str) -> None:
    """Load, say so, and answer stdin line by line."""
    start = time.perf_counter()
    ours = Ours(model, mode)
    load_s = time.perf_counter() - start
    reply: Reply = {"ready": True, "mode": mode, "version": version(PACKAGE), "load_s": load_s}
    reply["resident_bytes"] = memory_bytes("VmRSS")
    while True:
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            break
        request = json.loads(line)
        reply = MEASURES[request.get("measure", "documents")](ours, request)
        reply["peak_resident_bytes"] = memory_bytes("VmHWM")
    ours.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
