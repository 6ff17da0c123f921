"""HybridStore: a store and a keyword index that are written together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contract import EmbeddingContract
from .core.streaming import divide
from .keywords import KeywordIndex
from .rows import Hit, Row, RowId, Store, Vectors, Where

PAGE = 1000


class HybridStore(Store):
    """A store whose rows go into a keyword index too; for jobs and for a Qwen3Retriever.

    Keywords are written first, so that each row that can be found by its vector can be found by
    its words, and deleted first, so that the next run mends what a killed one left; what only the
    keyword index holds is never shown. An index that is new, or was written without, is brought up
    to date when this object is made.
    """

    def __init__(self, store: Store, keywords: KeywordIndex) -> None:
        self.store = store
        self.keywords = keywords
        if len(keywords) != len(store):
            for page in divide((row for row, _ in store.rows()), PAGE):
                self._write_words(page)

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def identity(self) -> str:
        return self.store.identity

    @property
    def contract(self) -> EmbeddingContract | None:
        return self.store.contract

    @property
    def max_rows(self) -> int:
        return self.store.max_rows

    def __len__(self) -> int:
        return len(self.store)

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        return self.store.hashes(ids)

    def write(self, rows: Sequence[Row], vectors: Vectors, *, are_new: bool) -> None:
        """Write rows and their words."""
        self._write_words(rows)
        self.store.write(rows, vectors, are_new=are_new)

    def ids_beyond(self, source: str, position: int) -> list[RowId]:
        return self.store.ids_beyond(source, position)

    def rows(self) -> Iterator[tuple[Row, Vectors]]:
        return self.store.rows()

    def sources(self) -> Iterator[tuple[RowId, str]]:
        return self.store.sources()

    def delete(self, ids: Sequence[RowId]) -> None:
        """Delete rows and their words."""
        # Words without rows, left by a killed job, would have every opening read the whole store.
        self.keywords.delete([str(one) for one in ids])
        self.store.delete(ids)

    def is_passing(self, error: BaseException) -> bool:
        return self.store.is_passing(error)

    def nearest(self, vector: Vectors, *, limit: int, where: Where | None = None) -> list[Hit]:
        return self.store.nearest(vector, limit=limit, where=where)

    def fetch(self, ids: Sequence[str], *, where: Where | None = None) -> list[Hit]:
        return self.store.fetch(ids, where=where)

    def close(self) -> None:
        self.keywords.close()
        self.store.close()

    def _write_words(self, rows: Sequence[Row]) -> None:
        # With its title: there a statute's number may stand, and a section's subject.
        texts = ["\n".join(filter(None, (row.facts.get("title"), row.text))) for row in rows]
        self.keywords.write([str(row.id) for row in rows], texts)
