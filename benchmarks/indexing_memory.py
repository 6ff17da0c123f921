"""The resident memory of a job over a generator without an end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

from qwen3_embedding_integrations import EmbeddingContract, index_documents
from qwen3_embedding_integrations.chroma import ChromaStore
from qwen3_embedding_integrations.chroma.collection import CONTRACT_KEY
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.rows import Row, RowId
from tests.indexing import jobs
from tests.servers import ChromaServer
from tests.stores import folder_in_memory

DIMENSIONS = 64
NUM_SAMPLES = 20  # the first at a twentieth of the documents: 10,000 of 200,000


class HashEncoder:
    """A model that costs nothing: a text's vector is its hash, brought to unit length."""

    dimensions = DIMENSIONS
    contract = EmbeddingContract(
        model="hash", revision="blake2b", dimensions=DIMENSIONS, instruction="", max_length=8192,
        on_too_long="truncate", dtype="float32", package_version="0",
    )  # fmt: skip

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        digests = b"".join(hashlib.blake2b(one.encode()).digest() for one in documents)
        vectors = np.frombuffer(digests, np.int8).reshape(-1, DIMENSIONS).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class ForgetfulSink:
    """A collection that counts what it is given and keeps nothing."""

    name = identity = "forgetful"
    contract = None
    max_rows = 10_000

    def __init__(self) -> None:
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        return {}

    def write(self, rows: Sequence[Row], vectors: np.ndarray, *, are_new: bool) -> None:
        self._num_rows += len(rows)

    def is_passing(self, error: BaseException) -> bool:
        return False


def resident_megabytes() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_endless(port: int | None, num: int, path: Path) -> None:
    """Index a generator until `num` documents have come; write the samples to a file."""
    encoder: Any = HashEncoder()
    sink: Any = ForgetfulSink()
    if port is not None:
        client = chromadb.HttpClient(port=port)
        metadata = {CONTRACT_KEY: json.dumps(encoder.contract.to_dict())}
        made = client.create_collection("endless", embedding_function=None, metadata=metadata)
        sink = ChromaStore(client, made)
    samples: dict[str, list[float]] = {"documents": [], "megabytes": []}

    class Enough(Exception):
        pass

    def endless() -> Iterator[Document]:
        i = 0
        while True:
            yield Document(f"document {i} says nothing that is worth a vector", f"{i}.txt", 0)
            i += 1
            if i % (num // NUM_SAMPLES) == 0:
                samples["documents"].append(i)
                samples["megabytes"].append(resident_megabytes())
            if i >= num:
                raise Enough

    try:
        index_documents(endless(), encoder, sink)
    except Enough:
        jobs.write_whole(path, samples)


def measure_memory(num: int) -> dict[str, Any]:
    """Return samples of a job's memory, by what it writes to, each in a process of its own."""
    measured: dict[str, Any] = {}
    with folder_in_memory() as folder, ChromaServer(folder) as server:
        for name, port in (("a sink that keeps nothing", None), ("a Chroma server", server.port)):
            path = folder / "samples.json"
            jobs.run_to_end(run_endless, port, num, path, patience_s=900)
            samples = json.loads(path.read_text())
            megabytes = samples["megabytes"]
            measured[name] = {
                **samples,
                "growth": megabytes[-1] / megabytes[0] - 1,
                "spread": (max(megabytes) - min(megabytes)) / megabytes[0],
            }
    return measured
