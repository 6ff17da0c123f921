"""Rows of a collection: a document's id, its facts and the hash that tells whether it changed."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .contract import EmbeddingContract, Vectors
from .documents import Document

RowId = str | int
Where = Mapping[str, Any]

NAMESPACE = uuid.UUID("d0a1f5a4-6c1b-5d7e-9f43-0a8f2a6b7c55")  # of the ids: never change it
HASH_KEY = "content_hash"
OUR_FACTS = {"source", "position", "title", "document", "score", "text", HASH_KEY}


class Row(NamedTuple):
    """One document as a store keeps it."""

    id: RowId
    text: str
    facts: dict[str, Any]  # source, position, title, content_hash, and what the file said
    vector: Vectors | None = None  # where it is known already

    @property
    def content_hash(self) -> str:
        """Equal where text and facts are."""
        return self.facts[HASH_KEY]

    @property
    def name(self) -> str:
        """What a reader knows the row by."""
        if "source" in self.facts:
            return f"{self.facts['source']} #{self.facts.get('position', 0)}"
        return str(self.id)


class Hit(NamedTuple):
    """One document found.

    `score` falls from hit to hit of one search and means nothing beside another search's; for a
    store's own hits it is the cosine, for those of a reranker the reranker's.
    """

    id: str  # an int id of Qdrant's comes as its digits
    score: float
    text: str
    facts: dict[str, Any]  # source, position, title, and what else is kept beside the text


class Sink(Protocol):
    """A collection that rows go into. Methods may raise what its client raises."""

    @property
    def name(self) -> str:
        """What it is, for messages."""
        ...

    @property
    def identity(self) -> str:
        """Tells this collection from any other, also from one made later under the same name."""
        ...

    @property
    def contract(self) -> EmbeddingContract | None:
        """How its vectors were made; None if it does not say."""
        ...

    @property
    def max_rows(self) -> int:
        """How many rows one write may hold."""
        ...

    def __len__(self) -> int: ...

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        """Return the content hash of each of these rows that is there; "" if it keeps none."""
        ...

    def write(self, rows: Sequence[Row], vectors: Vectors, *, are_new: bool) -> None:
        """Write rows, all of them or none; `are_new` says that none of their ids is there."""
        ...

    def ids_beyond(self, source: str, position: int) -> list[RowId]:
        """Return the ids of a source's rows at `position` and after it, last first.

        So that a deletion that dies halfway leaves no gap before what it did not come to.
        """
        ...

    def rows(self) -> Iterator[tuple[Row, Vectors]]:
        """Yield every row with its vector, (dimensions,)."""
        ...

    def sources(self) -> Iterator[tuple[RowId, str]]:
        """Yield each row's id and source; rows without a source are left out."""
        ...

    def delete(self, ids: Sequence[RowId]) -> None:
        """Delete rows."""
        ...

    def is_passing(self, error: BaseException) -> bool:
        """Whether the same call may succeed later: the host is down, busy or restarting."""
        ...


class SearchStore(Protocol):
    """A collection of vectors and texts, as far as searching needs it.

    `where` is equality by field, {"source": "a.txt", "year": [2020, 2021]}: all must hold, a list
    means any of its values.
    """

    def nearest(self, vector: Vectors, *, limit: int, where: Where | None = None) -> list[Hit]:
        """Return the `limit` nearest documents, nearest first, scored by cosine."""
        ...

    def fetch(self, ids: Sequence[str], *, where: Where | None = None) -> list[Hit]:
        """Return the documents of these ids in this order, without those that are not there."""
        ...


class Store(Sink, SearchStore, Protocol):
    """Both: ChromaStore, the `store` of a Qwen3Collection, HybridStore."""

    def close(self) -> None:
        """Give back what is held."""
        ...


def row_of(document: Document) -> Row:
    """Return a document's row; its id depends on source and position alone."""
    title = {"title": document.title} if document.title else {}
    own = {"source": document.source, "position": document.position}
    # A column that bears one of our names keeps its value under a name of its own.
    theirs = {f"{k}_" if k in OUR_FACTS else k: v for k, v in document.metadata.items()}
    facts = {**theirs, **title, **own}
    row_id = document_id(document.source, document.position)
    return Row(row_id, document.text, {**facts, HASH_KEY: content_hash(document.text, facts)})


def last_first(rows: Iterable[tuple[Any, RowId]]) -> list[RowId]:
    """Return the ids of (position, id), the highest position first."""
    return [row_id for _, row_id in sorted(rows, key=lambda row: row[0], reverse=True)]


def document_id(source: str, position: int) -> str:
    """Return the id of a piece of a source: the same in every run."""
    return str(uuid.uuid5(NAMESPACE, f"{source}\n{position}"))


def content_hash(text: str, facts: Mapping[str, Any]) -> str:
    """Return 32 hex digits, equal where text and facts are."""
    content = json.dumps([text, facts], ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
