"""ChromaStore: a collection that index_documents fills and a retriever searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx  # Chroma's own; its errors come through
import numpy as np
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import GetResult
from chromadb.errors import InternalError, RateLimitError

from ..contract import EmbeddingContract
from ..errors import StoreError
from ..rows import HASH_KEY, Hit, Row, RowId, Store, Vectors, last_first
from .client import answered, end_waits
from .collection import stored_contract

PAGE = 1000  # rows of one read


class ChromaStore(Store):
    """A collection that `index_documents` fills and a retriever searches.

    A server that does not answer within its client's timeout (see `set_timeout`) is a StoreError.

    >>> import chromadb
    >>> from qwen3_embedding_integrations import index_documents, shared_encoder
    >>> from qwen3_embedding_integrations.chroma import ChromaStore, open_collection
    >>> from qwen3_embedding_integrations.documents import Document
    >>> client = chromadb.EphemeralClient()
    >>> store = ChromaStore(client, open_collection(client, "notes", model="tiny"))
    >>> documents = [Document("Paris is in France.", source="geography.txt", position=0)]
    >>> index_documents(documents, shared_encoder("tiny"), store).added
    1
    """

    def __init__(self, client: ClientAPI, collection: Collection) -> None:
        self.collection = collection
        self._client = client
        end_waits(client)
        self._is_remote = client.get_settings().chroma_server_host is not None
        index = collection.configuration_json
        spaces = (part["space"] for part in index.values() if _has_space(part))
        self._space = next(spaces, "cosine")

    @property
    def name(self) -> str:
        return f"Chroma collection {self.collection.name!r}"

    @property
    def identity(self) -> str:
        """The collection's own id: another after it was deleted and made again."""
        return str(self.collection.id)

    @property
    def contract(self) -> EmbeddingContract | None:
        return stored_contract(self.collection)

    @property
    @answered()
    def max_rows(self) -> int:
        return self._client.get_max_batch_size()

    @answered()
    def __len__(self) -> int:
        return self.collection.count()

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        found = self._get(ids=_texts(ids), include=["metadatas"])
        rows = zip(found["ids"], found["metadatas"] or [], strict=True)
        return {row_id: str((facts or {}).get(HASH_KEY, "")) for row_id, facts in rows}

    @answered()
    def write(self, rows: Sequence[Row], vectors: Vectors, *, are_new: bool) -> None:
        """Write rows; an upsert of ids that are there costs twenty times an add."""
        (self.collection.add if are_new else self.collection.upsert)(
            ids=_texts([row.id for row in rows]),
            embeddings=vectors,
            documents=[row.text for row in rows],
            metadatas=[row.facts for row in rows],
        )

    def ids_beyond(self, source: str, position: int) -> list[RowId]:
        where: Any = {"$and": [{"source": source}, {"position": {"$gte": position}}]}
        found = self._get(where=where, include=["metadatas"])
        facts = found["metadatas"] or []
        return last_first((f["position"], i) for i, f in zip(found["ids"], facts, strict=True))

    def rows(self) -> Iterator[tuple[Row, Vectors]]:
        for start in range(0, len(self), PAGE):
            page = self._get(
                limit=PAGE, offset=start, include=["documents", "metadatas", "embeddings"]
            )
            columns = (page["ids"], page["documents"] or [], page["metadatas"] or [])
            vectors = np.asarray(page["embeddings"], np.float32)
            for row_id, text, facts, vector in zip(*columns, vectors, strict=True):
                yield Row(row_id, text or "", dict(facts or {})), vector

    def sources(self) -> Iterator[tuple[RowId, str]]:
        for start in range(0, len(self), PAGE):
            page = self._get(limit=PAGE, offset=start, include=["metadatas"])
            for row_id, facts in zip(page["ids"], page["metadatas"] or [], strict=True):
                if facts and "source" in facts:
                    yield row_id, str(facts["source"])

    @answered()
    def delete(self, ids: Sequence[RowId]) -> None:
        self.collection.delete(ids=_texts(ids))

    @answered()
    def nearest(
        self, vector: Vectors, *, limit: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Return the rows nearest to a vector (dimensions,), best first, by cosine."""
        found = self.collection.query(
            query_embeddings=[vector], n_results=limit, where=_where(where)
        )
        # Of unit vectors, l2 (squared) is 2 - 2 cosine; cosine and ip are 1 - cosine.
        per_distance = 0.5 if self._space == "l2" else 1.0
        columns = (found["distances"] or [[]], found["documents"] or [[]])
        facts = (found["metadatas"] or [[]])[0]
        rows = zip(found["ids"][0], columns[0][0], columns[1][0], facts, strict=True)
        return [
            Hit(row_id, 1.0 - distance * per_distance, text or "", dict(facts or {}))
            for row_id, distance, text, facts in rows
        ]

    def fetch(self, ids: Sequence[str], *, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """Return these rows in the order given, without those that are not there; score 0."""
        found = self._get(ids=[*ids], where=_where(where), include=["documents", "metadatas"])
        columns = (found["ids"], found["documents"] or [], found["metadatas"] or [])
        hits = {i: Hit(i, 0.0, t or "", dict(f or {})) for i, t, f in zip(*columns, strict=True)}
        return [hits[one] for one in ids if one in hits]

    def is_passing(self, error: BaseException) -> bool:
        if isinstance(error, httpx.TransportError | RateLimitError | StoreError):
            return True
        if isinstance(error, InternalError):  # a server's; a folder's own is its disk's
            return self._is_remote
        answer = error.__context__  # Chroma raises a bare Exception from within
        if isinstance(answer, httpx.HTTPStatusError):
            status = answer.response.status_code
            return status == httpx.codes.TOO_MANY_REQUESTS or status >= 500
        return False

    def close(self) -> None:
        """Do nothing: Chroma writes at once and holds no lock."""

    @answered()
    def _get(self, **what: Any) -> GetResult:
        return self.collection.get(**what)


def _texts(ids: Sequence[RowId]) -> list[str]:
    return [str(one) for one in ids]


def _where(equal: Mapping[str, Any] | None) -> Any:
    """Return Chroma's filter for fields that equal a value, or one of a list of values."""
    conditions = [
        {key: {"$in": [*value]} if isinstance(value, list | tuple | set) else value}
        for key, value in (equal or {}).items()
    ]
    return {"$and": conditions} if len(conditions) > 1 else next(iter(conditions), None)


def _has_space(part: Any) -> bool:
    return isinstance(part, dict) and "space" in part
