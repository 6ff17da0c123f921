"""A user's own encoder behind the Encoder protocol: exact, counted, held and failing at will."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from qwen3_embedding_integrations.contract import EmbeddingContract, Vectors
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH
from qwen3_embedding_integrations.errors import InputError

WIDTH = 256
PATIENCE_S = 60  # for what never comes
CONTRACT = EmbeddingContract(
    model="hash",
    revision="1",
    dimensions=WIDTH,
    instruction=WEB_SEARCH,
    max_length=8192,
    on_too_long="truncate",
    dtype="float32",
    package_version="0",
)


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.002)


def true_vector(text: str, prompt: str = "", dimensions: int = WIDTH) -> np.ndarray:
    """Return the one vector of a text behind a prompt: no other text has it."""
    seed = int.from_bytes(hashlib.sha256(f"{prompt}\0{text}".encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)[:dimensions]
    return vector / np.linalg.norm(vector)


def true_vectors(texts: Sequence[str], prompt: str = "", dimensions: int = WIDTH) -> np.ndarray:
    """Return `true_vector` of each text."""
    return np.stack([true_vector(text, prompt, dimensions) for text in texts])


class HashEncoder:
    """Vectors out of hashes; counts what it is asked, waits at its gate, fails as told."""

    def __init__(self, **facts: object) -> None:
        self.contract = replace(CONTRACT, **facts)
        self.dimensions = self.contract.dimensions
        self.counts: Counter[str] = Counter()
        self.num_calls = 0
        self.bad_texts: set[str] = set()
        self.failures: list[Exception] = []  # raised by the next calls, one each
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.aentered = 0
        self._lock = threading.Lock()

    def encode_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> Vectors:
        self._enter(queries)
        assert self.gate.wait(PATIENCE_S), "nobody opened the gate"
        return self._leave(queries, instruction or self.contract.instruction)

    def encode_documents(self, documents: Sequence[str]) -> Vectors:
        self._enter(documents)
        assert self.gate.wait(PATIENCE_S), "nobody opened the gate"
        return self._leave(documents)

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        self._enter(queries)
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        return self._leave(queries, instruction or self.contract.instruction)

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        self._enter(documents)
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        return self._leave(documents)

    def stream_documents(self, documents: Iterable[str], *, window: int = 16) -> Iterator[Vectors]:
        raise AssertionError("a cache asks for what it lacks, not for the stream")

    def _enter(self, texts: Sequence[str]) -> None:
        with self._lock:
            self.num_calls += 1
            self.counts.update(texts)
        self.entered.release()

    def _leave(self, texts: Sequence[str], prompt: str = "") -> Vectors:
        with self._lock:
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        for index, text in enumerate(texts):
            if text in self.bad_texts or not text.strip():
                raise InputError(f"documents[{index}] is bad", index=index)
        return true_vectors(texts, prompt, self.dimensions)
