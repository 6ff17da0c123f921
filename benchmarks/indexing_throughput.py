"""index_documents beside LangChain's own add_texts: the same texts, encoder and kind of store."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.indexing_memory import ForgetfulSink
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder, index_documents
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
from tests.indexing import jobs
from tests.stores import folder_in_memory, open_sink

CHROMA_LIMIT = 5_000  # Chroma takes 5,461 rows at once, and langchain-chroma does not split


class BusyClock:
    """The time in which at least one forward is under way, seen from around the engine's launch."""

    def __init__(self, encoder: Qwen3Encoder) -> None:
        self._lock = threading.Lock()
        self._num_running = 0
        self._since = 0.0
        self.busy_s = 0.0
        for worker in encoder._loaded.engine._workers:  # one for bulk, one for queries beside it
            worker._launch = partial(self._run, worker._launch)

    def _run(self, launch: Callable[[Any], Callable[[], Any]], batch: Any) -> Callable[[], Any]:
        self._count(+1)
        try:
            wait = launch(batch)
        except BaseException:
            self._count(-1)
            raise

        def wait_and_stop() -> Any:
            try:
                return wait()
            finally:
                self._count(-1)

        return wait_and_stop

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._num_running:
                self.busy_s += now - self._since
            self._since = now
            self._num_running += change


def measure_busy(num: int, num_rounds: int) -> dict[str, Any]:
    """Return how busy the encoder is in a job whose store keeps up, in each round."""
    shares: list[float] = []
    documents = jobs.notes(num)
    with Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32")) as encoder:
        clock = BusyClock(encoder)
        encoder.encode_documents([one.text for one in documents[:500]])
        for _ in range(num_rounds):
            sink: Any = ForgetfulSink()
            start, before = time.perf_counter(), clock.busy_s
            index_documents(documents, encoder, sink)
            shares.append((clock.busy_s - before) / (time.perf_counter() - start))
    return {"documents": num, "busy_share": statistics.median(shares), "rounds": shares}


def run_ours(store: str, folder: Path, encoder: Qwen3Encoder, num: int) -> float:
    """Return the seconds of a job."""
    with open_sink(store, folder, encoder) as sink:
        start = time.perf_counter()
        report = index_documents(jobs.notes(num), encoder, sink)
        seconds = time.perf_counter() - start
        if not report.added == len(sink) == num:
            raise SystemExit(f"{len(sink)} rows of {num} documents: {report}")
    return seconds


def run_theirs(store: str, folder: Path, encoder: Qwen3Encoder, num: int) -> float:
    """Return the seconds of LangChain's add_texts, with ids and metadata like ours."""
    documents = jobs.notes(num)
    texts = [one.text for one in documents]
    facts = [{"source": one.source, "position": one.position} for one in documents]
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, text)) for text in texts]
    embeddings = Qwen3Embeddings(encoder=encoder)
    if store == "chroma":
        from langchain_chroma import Chroma

        chroma = Chroma("notes", embeddings, persist_directory=str(folder))
        start = time.perf_counter()
        for first in range(0, num, CHROMA_LIMIT):
            part = slice(first, first + CHROMA_LIMIT)
            chroma.add_texts(texts[part], facts[part], ids[part])
        return time.perf_counter() - start
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    try:
        size = models.VectorParams(size=encoder.dimensions, distance=models.Distance.COSINE)
        client.create_collection("notes", vectors_config=size)
        qdrant = QdrantVectorStore(client, "notes", embeddings)
        start = time.perf_counter()
        qdrant.add_texts(texts, facts, ids)
        return time.perf_counter() - start
    finally:
        client.close()


def measure_throughput(
    store: str, num: int, num_rounds: int, tell: Callable[[str], object]
) -> dict[str, Any]:
    """Return documents per second of both sides, alternating, and how busy our encoder is."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    busy: list[float] = []
    with Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32")) as encoder:
        clock = BusyClock(encoder)
        encoder.encode_documents([one.text for one in jobs.notes(500)])
        for number in range(num_rounds):
            for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                with folder_in_memory() as folder:
                    before = clock.busy_s
                    run = run_ours if side == "ours" else run_theirs
                    seconds = run(store, folder / "store", encoder, num)
                    rates[side].append(num / seconds)
                    if side == "ours":
                        busy.append((clock.busy_s - before) / seconds)
                    tell(f"{store}, round {number + 1}, {side}: {num / seconds:.0f} documents/s")
    ours, theirs = (statistics.median(rates[side]) for side in ("ours", "theirs"))
    return {
        "texts": num,
        "ours": ours,
        "theirs": theirs,
        "ratio": ours / theirs,
        "busy_share": statistics.median(busy),
        "rounds": {**rates, "busy_share": busy},
    }
