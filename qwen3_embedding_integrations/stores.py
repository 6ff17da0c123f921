"""Chroma and Qdrant behind one interface, for the command line."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .contract import EmbeddingContract
from .core.config import EncoderConfig
from .documents import Document
from .encoder import Qwen3Encoder
from .errors import InputError, Qwen3EmbeddingError, StoreError
from .sharing import shared_encoder

if TYPE_CHECKING:
    from .qdrant import Qwen3Collection

Vectors = npt.NDArray[np.float32]

NAMESPACE = uuid.UUID("d0a1f5a4-6c1b-5d7e-9f43-0a8f2a6b7c55")  # of the ids: never change it
OUR_FACTS = {"source", "position", "title", "document", "score", "text"}


class Hit(NamedTuple):
    """One document found, best first by `score` (cosine)."""

    score: float
    text: str
    facts: dict[str, Any]  # source, position, title, and what the file said


class Store(Protocol):
    """A collection that documents go into and come out of."""

    encoder: Qwen3Encoder

    def write(self, documents: Sequence[Document], vectors: Vectors) -> None: ...
    def trim(self, source: str, num_pieces: int) -> None: ...
    def search(self, vector: Vectors, limit: int) -> list[Hit]: ...
    def __len__(self) -> int: ...
    def close(self) -> None: ...


def open_store(
    store: str, location: str, collection: str, options: dict[str, Any], *, create: bool
) -> Store:
    """Return the collection at `location`, a folder or URL; made if missing and `create`.

    Options not given are those the collection was made with. Raises ContractMismatchError where
    given ones differ in a hard fact, InputError where there is nothing to search.
    """
    kind = {"chroma": ChromaStore, "qdrant": QdrantStore}[store]
    if not create:
        _require_folder(location)
    with _failures_named(store, location):
        return kind(location, collection, options, create=create)


def fill(store: Store, documents: Iterable[Document]) -> Iterator[int]:
    """Embed and write all documents; yield how many each batch wrote, once it is written.

    The next batch is encoded while one is written; no more than two are held.
    """
    under_way: deque[Document] = deque()

    def texts() -> Iterator[str]:
        for document in documents:
            under_way.append(document)
            yield document.text

    for vectors in store.encoder.stream_documents(texts(), window=128):
        store.write([under_way.popleft() for _ in range(len(vectors))], vectors)
        yield len(vectors)


class ChromaStore:
    """A Chroma collection in a folder or behind a URL."""

    def __init__(
        self, location: str, collection: str, options: dict[str, Any], *, create: bool
    ) -> None:
        from .chroma import (
            Qwen3EmbeddingFunction,
            connect,
            find_collection,
            open_collection,
            stored_config,
        )

        client = connect(location)
        stored = find_collection(client, collection)
        if stored is None and not create:
            raise _nothing(collection, location, [one.name for one in client.list_collections()])
        config = merge(stored_config(stored) if stored else None, options)
        function = Qwen3EmbeddingFunction(**config.to_dict())
        self._collection = open_collection(client, collection, function)
        self.encoder = function.encoder
        index = self._collection.configuration_json
        self._space = next((part["space"] for part in index.values() if _has_space(part)), "cosine")

    def write(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """Write the documents, replacing those of the same source and position."""
        self._collection.upsert(
            ids=[point_id(document) for document in documents],
            embeddings=vectors,
            documents=[document.text for document in documents],
            metadatas=[facts_of(document) for document in documents],
        )

    def trim(self, source: str, num_pieces: int) -> None:
        """Delete what a source had beyond its present pieces."""
        of_source: Any = {"source": source}
        beyond: Any = {"position": {"$gte": num_pieces}}
        self._collection.delete(where={"$and": [of_source, beyond]})

    def search(self, vector: Vectors, limit: int) -> list[Hit]:
        """Return the nearest documents."""
        found = self._collection.query(query_embeddings=[vector], n_results=limit)
        # Of unit vectors, l2 (squared) is 2 - 2 cosine; cosine and ip are 1 - cosine.
        per_distance = 0.5 if self._space == "l2" else 1.0
        rows = zip(
            (found["distances"] or [[]])[0],
            (found["documents"] or [[]])[0],
            (found["metadatas"] or [[]])[0],
            strict=True,
        )
        return [
            Hit(1.0 - distance * per_distance, text or "", dict(facts or {}))
            for distance, text, facts in rows
        ]

    def __len__(self) -> int:
        return self._collection.count()

    def close(self) -> None:
        """Do nothing: Chroma writes at once and holds no lock."""


class QdrantStore:
    """A Qdrant collection in a folder or behind a URL."""

    def __init__(
        self, location: str, collection: str, options: dict[str, Any], *, create: bool
    ) -> None:
        from .qdrant import Qwen3Collection, connect, stored_config

        client = connect(location)
        with ExitStack() as on_failure:
            on_failure.callback(client.close)
            exists = client.collection_exists(collection)
            if not exists and not create:
                names = [one.name for one in client.get_collections().collections]
                raise _nothing(collection, location, names)
            config = merge(stored_config(client, collection) if exists else None, options)
            self.encoder = shared_encoder(config)
            self._collection: Qwen3Collection = Qwen3Collection(
                client, collection, encoder=self.encoder
            )
            on_failure.pop_all()

    def write(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """Write the documents, replacing those of the same source and position."""
        self._collection.write(
            vectors,
            ids=[point_id(document) for document in documents],
            payloads=[{**facts_of(one), "document": one.text} for one in documents],
        )

    def trim(self, source: str, num_pieces: int) -> None:
        """Delete what a source had beyond its present pieces."""
        self._collection.delete({"source": source}, at_least={"position": num_pieces})

    def search(self, vector: Vectors, limit: int) -> list[Hit]:
        """Return the nearest documents."""
        points = self._collection.nearest(vector, limit=limit)
        rows = [(point.score, dict(point.payload or {})) for point in points]
        return [Hit(score, facts.pop("document", ""), facts) for score, facts in rows]

    def __len__(self) -> int:
        return len(self._collection)

    def close(self) -> None:
        """Give a local folder's lock back."""
        self._collection.client.close()


def read_contract(store: str, location: str, collection: str) -> EmbeddingContract | None:
    """Return the contract stored in a collection, without loading a model."""
    _require_folder(location)
    with _failures_named(store, location):
        if store == "chroma":
            from . import chroma

            found = chroma.find_collection(chroma.connect(location), collection)
            return chroma.stored_contract(found) if found else None
        from . import qdrant

        with closing(qdrant.connect(location)) as client:
            exists = client.collection_exists(collection)
            return qdrant.stored_contract(client, collection) if exists else None


def merge(stored: EncoderConfig | None, options: dict[str, Any]) -> EncoderConfig:
    """Return the stored options, overridden by those given."""
    return EncoderConfig.from_options(**{**(stored.portable() if stored else {}), **options})


def point_id(document: Document) -> str:
    """Return the id of a piece of a source: the same in every run."""
    return str(uuid.uuid5(NAMESPACE, f"{document.source}\n{document.position}"))


def facts_of(document: Document) -> dict[str, Any]:
    """Return what is kept beside a document."""
    title = {"title": document.title} if document.title else {}
    own = {"source": document.source, "position": document.position}
    # A column that bears one of our names keeps its value under a name of its own.
    theirs = {f"{k}_" if k in OUR_FACTS else k: v for k, v in document.metadata.items()}
    return {**theirs, **title, **own}


def is_url(location: str) -> bool:
    """Whether a location is a server's address, not a folder."""
    return location.startswith(("http://", "https://"))


def _has_space(part: Any) -> bool:
    return isinstance(part, dict) and "space" in part


def _require_folder(location: str) -> None:
    if not is_url(location) and not Path(location).is_dir():
        raise InputError(f"no folder {location!r}; run `qwen3-embedding index` first")


@contextmanager
def _failures_named(store: str, location: str) -> Generator[None]:
    """Say which store failed, whatever its client raises."""
    try:
        yield
    except Qwen3EmbeddingError:
        raise
    except Exception as error:
        hint = "does the server run?" if is_url(location) else "is it open in another process?"
        raise StoreError(
            f"{store} at {location} cannot be opened ({type(error).__name__}: {error}); {hint}"
        ) from error


def _nothing(collection: str, location: str, names: list[str]) -> InputError:
    there = ", ".join(sorted(names)) or "none"
    return InputError(f"no collection {collection!r} at {location} (there: {there})")
