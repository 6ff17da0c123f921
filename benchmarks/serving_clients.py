"""Clients of a server under measurement: they ask for a while and check every answer."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

TIMEOUT = aiohttp.ClientTimeout(total=300)


@dataclass
class Workload:
    """Texts, what their vectors must be, and how far an answer may be from that (1 - cosine)."""

    queries: list[str]
    documents: list[str]
    query_vectors: Vectors
    document_vectors: Vectors
    document_tokens: npt.NDArray[np.int64]
    tolerance: float


@dataclass
class Tally:
    """What clients of one kind saw."""

    latencies_ms: list[float] = field(default_factory=list)
    num_wrong: int = 0
    num_lost: int = 0
    worst: float = 0.0  # largest 1 - cosine to the expected vector
    num_tokens: int = 0

    def percentile(self, q: float) -> float:
        """Return a latency in ms."""
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else float("nan")

    def summary(self) -> dict[str, float | int]:
        """Return the numbers for the report."""
        return {
            "answers": len(self.latencies_ms),
            "wrong": self.num_wrong,
            "lost": self.num_lost,
            "worst_distance": self.worst,
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
        }


class Client:
    """One connection that asks until it is told to stop."""

    def __init__(self, url: str, model: str, workload: Workload, tally: Tally) -> None:
        self._url = f"{url}/v1/embeddings"
        self._model = model
        self._workload = workload
        self._tally = tally

    async def ask_queries(
        self,
        session: aiohttp.ClientSession,
        until: Callable[[], bool],
        rng: random.Random,
        think_s: float,
    ) -> None:
        """Ask one query after another, thinking between them."""
        texts, right = self._workload.queries, self._workload.query_vectors
        await asyncio.sleep(rng.random() * think_s)
        while not until():
            row = rng.randrange(len(texts))
            await self._ask(session, [texts[row]], right[row : row + 1], "query", 0)
            if think_s:
                await asyncio.sleep(think_s * (0.5 + rng.random()))

    async def ask_bulk(
        self,
        session: aiohttp.ClientSession,
        until: Callable[[], bool],
        rng: random.Random,
        size: int,
    ) -> None:
        """Send lists of documents, one after another."""
        load = self._workload
        while not until():
            rows = [rng.randrange(len(load.documents)) for _ in range(size)]
            tokens = int(load.document_tokens[rows].sum())
            texts = [load.documents[row] for row in rows]
            await self._ask(session, texts, load.document_vectors[rows], "document", tokens)

    async def ask_rows(self, session: aiohttp.ClientSession, rows: Iterator[Sequence[int]]) -> None:
        """Send the documents of each list of rows; several clients may share the iterator."""
        load = self._workload
        for chosen in rows:
            picked = list(chosen)
            texts = [load.documents[row] for row in picked]
            tokens = int(load.document_tokens[picked].sum())
            await self._ask(session, texts, load.document_vectors[picked], "document", tokens)

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        texts: list[str],
        right: Vectors,
        role: str,
        tokens: int,
    ) -> None:
        body = {
            "model": self._model,
            "input": texts,
            "input_type": role,
            "encoding_format": "base64",
        }
        start = time.perf_counter()
        try:
            async with session.post(self._url, json=body) as response:
                content = await response.read()
                is_answer = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            is_answer, content = False, b""
        if not is_answer:
            self._tally.num_lost += 1
            return
        self._tally.latencies_ms.append((time.perf_counter() - start) * 1000)
        rows = [one["embedding"] for one in json.loads(content)["data"]]
        if rows and isinstance(rows[0], str):
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        found = np.array(rows, np.float32)
        distance = (
            float((1 - (found * right).sum(axis=1)).max()) if found.shape == right.shape else 2.0
        )
        self._tally.worst = max(self._tally.worst, distance)
        self._tally.num_wrong += distance > self._workload.tolerance
        self._tally.num_tokens += tokens


async def mixed_load(
    url: str,
    model: str,
    workload: Workload,
    *,
    seconds: float,
    num_query_clients: int,
    num_bulk_clients: int,
    bulk_size: int,
    think_s: float,
    every: Callable[[], None] = lambda: None,
) -> tuple[Tally, Tally]:
    """Return what query clients and bulk clients saw; `every` is called each second."""
    end = time.monotonic() + seconds
    queries, bulk = Tally(), Tally()

    def until() -> bool:
        return time.monotonic() >= end

    async def watch() -> None:
        while not until():
            every()
            await asyncio.sleep(1)

    async with _session() as session:
        work = [
            Client(url, model, workload, queries).ask_queries(
                session, until, random.Random(number), think_s
            )
            for number in range(num_query_clients)
        ]
        work += [
            Client(url, model, workload, bulk).ask_bulk(
                session, until, random.Random(1000 + number), bulk_size
            )
            for number in range(num_bulk_clients)
        ]
        await asyncio.gather(watch(), *work)
    return queries, bulk


async def all_documents(
    url: str, model: str, workload: Workload, *, bulk_size: int, num_clients: int
) -> tuple[Tally, float]:
    """Return what the clients saw, and the seconds until every document was answered."""
    number = len(workload.documents)
    rows = iter([range(i, min(i + bulk_size, number)) for i in range(0, number, bulk_size)])
    tally = Tally()
    start = time.perf_counter()
    async with _session() as session:
        await asyncio.gather(
            *(
                Client(url, model, workload, tally).ask_rows(session, rows)
                for _ in range(num_clients)
            )
        )
    return tally, time.perf_counter() - start


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0))
