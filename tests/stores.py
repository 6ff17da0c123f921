"""Real stores in folders, as jobs fill them, and what they hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding_integrations import Encoder
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.rows import Sink

Vectors = np.ndarray


@contextmanager
def open_sink(kind: str, folder: Path | str, encoder: Encoder) -> Iterator[Sink]:
    """Yield the collection "notes" of a folder or server, made if it is not there."""
    if kind == "chroma":
        from qwen3_embedding_integrations.chroma import ChromaStore, connect, open_collection

        client = connect(str(folder))
        yield ChromaStore(client, open_collection(client, "notes", model="tiny", dtype="float32"))
    else:
        from qwen3_embedding_integrations.qdrant import Qwen3Collection

        with Qwen3Collection(str(folder), "notes", encoder=encoder) as collection:
            yield collection.store


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Yield a folder in memory where there is one: kill -9 asks nothing of the disk."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm, ignore_cleanup_errors=True) as one:
        yield Path(one)


def held_by(sink: Sink) -> dict[str, tuple[str, dict[str, Any], Vectors]]:
    """Return text, facts and vector of every row, by id."""
    return {str(row.id): (row.text, row.facts, vector) for row, vector in sink.rows()}


def make_documents(num: int, *, per_source: int = 4, word: str = "note") -> list[Document]:
    """Return short documents, each with a text of its own, `per_source` to a source."""
    return [
        Document(f"{word} {i} 第{i}条", source=f"{i // per_source}.txt", position=i % per_source)
        for i in range(num)
    ]


class Counting:
    """An encoder that notes which documents it was given."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.encoded: list[str] = []

    def encode_documents(self, documents: Sequence[str]) -> Vectors:
        self.encoded += documents
        return self._encoder.encode_documents(documents)

    def stream_documents(self, documents: Iterable[str], *, window: int = 512) -> Iterator[Vectors]:
        return self._encoder.stream_documents(documents, window=window)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)
