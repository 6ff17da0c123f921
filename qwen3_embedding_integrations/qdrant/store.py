"""QdrantStore: a collection that index_documents fills and a retriever searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ..contract import EmbeddingContract
from ..rows import HASH_KEY, Hit, Row, RowId, Vectors, last_first
from .collection import UPLOAD_SIZE, Qwen3Collection, stored_contract, stored_identity
from .points import DOCUMENT_KEY

PAGE = 1000  # points of one read
PASSING_GRPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"}


class QdrantStore:
    """A Qwen3Collection as `index_documents` and retrievers see it.

    >>> from qwen3_embedding_integrations import index_documents
    >>> from qwen3_embedding_integrations.documents import Document
    >>> from qwen3_embedding_integrations.qdrant import QdrantStore, Qwen3Collection
    >>> collection = Qwen3Collection(":memory:", "notes", model="tiny")
    >>> documents = [Document("Paris is in France.", source="geography.txt", position=0)]
    >>> index_documents(documents, collection.encoder, QdrantStore(collection)).added
    1
    """

    max_rows = 10_000  # cut into parts of UPLOAD_SIZE

    def __init__(self, collection: Qwen3Collection) -> None:
        self.collection = collection
        self._client = collection.client

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return f"Qdrant collection {self.collection.name!r}"

    @property
    def identity(self) -> str:
        """An id kept in the collection: another after it was deleted and made again."""
        return stored_identity(self._client, self.collection.name)

    @property
    def contract(self) -> EmbeddingContract | None:
        """How its vectors were made."""
        return stored_contract(self._client, self.collection.name)

    def __len__(self) -> int:
        return len(self.collection)

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        """Return the content hash of each of these rows that is there."""
        with self.collection.guard:
            found = self._client.retrieve(self.collection.name, [*ids], with_payload=[HASH_KEY])
        return {_row_id(one): str((one.payload or {}).get(HASH_KEY, "")) for one in found}

    def write(self, rows: Sequence[Row], vectors: Vectors, *, are_new: bool) -> None:
        """Write rows, searchable on return."""
        del are_new  # an upsert costs the same
        # Not upload_collection: that waits for a host at its limits without end, and warns of it
        # (qdrant-client 1.20).
        points = [
            models.PointStruct(id=row.id, vector=vector, payload=_payload(row))
            for row, vector in zip(rows, vectors.tolist(), strict=True)
        ]
        for start in range(0, len(points), UPLOAD_SIZE):
            with self.collection.guard:
                part = points[start : start + UPLOAD_SIZE]
                self._client.upsert(self.collection.name, part, wait=True)

    def ids_beyond(self, source: str, position: int) -> list[RowId]:
        """Return the ids of a source's rows at `position` and after it, last first."""
        conditions: list[models.Condition] = [
            models.FieldCondition(key="source", match=models.MatchValue(value=source)),
            models.FieldCondition(key="position", range=models.Range(gte=position)),
        ]
        found = self._scroll(models.Filter(must=conditions), with_payload=["position"])
        return last_first(((one.payload or {})["position"], _row_id(one)) for one in found)

    def rows(self) -> Iterator[tuple[Row, Vectors]]:
        """Yield every row with its vector."""
        for point in self._scroll(None, with_payload=True, with_vectors=True):
            facts = dict(point.payload or {})
            text = str(facts.pop(DOCUMENT_KEY, ""))
            yield Row(_row_id(point), text, facts), np.array(point.vector, np.float32)

    def sources(self) -> Iterator[tuple[RowId, str]]:
        """Yield each row's id and source."""
        for point in self._scroll(None, with_payload=["source"]):
            if point.payload and "source" in point.payload:
                yield _row_id(point), str(point.payload["source"])

    def delete(self, ids: Sequence[RowId]) -> None:
        """Delete rows."""
        with self.collection.guard:
            self._client.delete(self.collection.name, models.PointIdsList(points=[*ids]), wait=True)

    def nearest(
        self, vector: Vectors, *, limit: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Return the rows nearest to a vector (dimensions,), best first, by cosine."""
        points = self.collection.nearest(vector, limit=limit, query_filter=_filter(where))
        return [_hit(point, point.score) for point in points]

    def fetch(self, ids: Sequence[RowId], *, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """Return these rows in the order given, without those that are not there; score 0."""
        chosen = models.Filter(must=[*_conditions(where), models.HasIdCondition(has_id=[*ids])])
        found = {_row_id(one): one for one in self._scroll(chosen, with_payload=True)}
        return [_hit(found[one], 0.0) for one in ids if one in found]

    def is_passing(self, error: BaseException) -> bool:
        """Whether the same call may succeed later."""
        if isinstance(error, ResponseHandlingException | ResourceExhaustedResponse):
            return True
        if isinstance(error, UnexpectedResponse):
            return error.status_code == 429 or (error.status_code or 0) >= 500
        code = getattr(error, "code", None)  # of a gRPC call; its class is private
        return callable(code) and getattr(code(), "name", "") in PASSING_GRPC

    def close(self) -> None:
        """Give a local folder's lock back."""
        self._client.close()

    def _scroll(
        self, chosen: models.Filter | None, *, with_payload: Any, with_vectors: bool = False
    ) -> Iterator[models.Record]:
        offset = None
        while True:
            with self.collection.guard:
                page, offset = self._client.scroll(
                    self.collection.name, chosen, PAGE,
                    offset=offset, with_payload=with_payload, with_vectors=with_vectors,
                )  # fmt: skip
            yield from page
            if offset is None:
                return


def _row_id(point: models.Record | models.ScoredPoint) -> RowId:
    return point.id if isinstance(point.id, int) else str(point.id)


def _payload(row: Row) -> dict[str, Any]:
    return {**row.facts, DOCUMENT_KEY: row.text}


def _hit(point: models.Record | models.ScoredPoint, score: float) -> Hit:
    facts = dict(point.payload or {})
    return Hit(_row_id(point), score, str(facts.pop(DOCUMENT_KEY, "")), facts)


def _filter(equal: Mapping[str, Any] | None) -> models.Filter | None:
    return models.Filter(must=_conditions(equal)) if equal else None


def _conditions(equal: Mapping[str, Any] | None) -> list[models.Condition]:
    """Return Qdrant's conditions for fields that equal a value, or one of a list of values."""
    return [
        models.FieldCondition(
            key=key,
            match=models.MatchAny(any=[*value])
            if isinstance(value, list | tuple | set)
            else models.MatchValue(value=value),
        )
        for key, value in (equal or {}).items()
    ]
