"""QdrantStore: a collection that index_documents fills and a retriever searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ..contract import EmbeddingContract
from ..core.streaming import divide
from ..rows import HASH_KEY, Hit, Row, RowId, Store, Vectors, last_first
from .client import guard_of, is_local, stored_contract, stored_identity
from .points import DOCUMENT_KEY
from .storage import EXACT, search_params, stored_storage

PAGE = 1000  # points of one read
UPLOAD_SIZE = 256  # points of one request: 1 MB at 1,024 dimensions, far below Qdrant's 32 MB
PASSING_GRPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"}


class QdrantStore(Store):
    """A collection as `index_documents` and retrievers see it; `Qwen3Collection.store` is one.

    >>> from qwen3_embedding_integrations import index_documents
    >>> from qwen3_embedding_integrations.documents import Document
    >>> from qwen3_embedding_integrations.qdrant import Qwen3Collection
    >>> collection = Qwen3Collection(":memory:", "notes", model="tiny")
    >>> documents = [Document("Paris is in France.", source="geography.txt", position=0)]
    >>> index_documents(documents, collection.encoder, collection.store).added
    1
    """

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection
        self._guard = guard_of(client)

        # A local collection compares whole vectors anyway, and warns of every wish.
        self._exact_params = None if is_local(client) else EXACT

    @cached_property
    def _search_params(self) -> models.SearchParams | None:
        return search_params(stored_storage(self._client, self._collection))

    @property
    def name(self) -> str:
        return f"Qdrant collection {self._collection!r}"

    @property
    def identity(self) -> str:
        """An id kept in the collection: another after it was deleted and made again."""
        return stored_identity(self._client, self._collection)

    @property
    def contract(self) -> EmbeddingContract | None:
        return stored_contract(self._client, self._collection)

    @property
    def max_rows(self) -> int:
        return 10_000  # cut into parts of UPLOAD_SIZE

    def __len__(self) -> int:
        with self._guard:
            return self._client.count(self._collection, exact=True).count

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        with self._guard:
            found = self._client.retrieve(self._collection, [*ids], with_payload=[HASH_KEY])
        return {_row_id(one): str((one.payload or {}).get(HASH_KEY, "")) for one in found}

    def write(self, rows: Sequence[Row], vectors: Vectors, *, are_new: bool) -> None:
        """Write rows, searchable on return."""
        del are_new  # an upsert costs the same
        self.upload(vectors, ids=[row.id for row in rows], payloads=[_payload(row) for row in rows])

    def upload(
        self, vectors: Vectors, *, ids: Sequence[RowId], payloads: Sequence[dict[str, Any]]
    ) -> None:
        """Write points, searchable on return."""
        # Not upload_collection, which sends arrays as bytes at a quarter of the client's cost: it
        # waits for a host at its limits without end, and warns of it (qdrant-client 1.20).
        points = [
            models.PointStruct(id=row_id, vector=vector, payload=payload)
            for row_id, vector, payload in zip(ids, vectors.tolist(), payloads, strict=True)
        ]
        for part in divide(points, UPLOAD_SIZE):
            with self._guard:
                self._client.upsert(self._collection, part, wait=True)

    def ids_beyond(self, source: str, position: int) -> list[RowId]:
        conditions: list[models.Condition] = [
            models.FieldCondition(key="source", match=models.MatchValue(value=source)),
            models.FieldCondition(key="position", range=models.Range(gte=position)),
        ]
        found = self._scroll(models.Filter(must=conditions), with_payload=["position"])
        return last_first(((one.payload or {})["position"], _row_id(one)) for one in found)

    def rows(self) -> Iterator[tuple[Row, Vectors]]:
        for point in self._scroll(None, with_payload=True, with_vectors=True):
            facts = dict(point.payload or {})
            text = str(facts.pop(DOCUMENT_KEY, ""))
            yield Row(_row_id(point), text, facts), np.array(point.vector, np.float32)

    def sources(self) -> Iterator[tuple[RowId, str]]:
        for point in self._scroll(None, with_payload=["source"]):
            if point.payload and "source" in point.payload:
                yield _row_id(point), str(point.payload["source"])

    def delete(self, ids: Sequence[RowId]) -> None:
        with self._guard:
            self._client.delete(self._collection, models.PointIdsList(points=[*ids]), wait=True)

    def nearest(
        self, vector: Vectors, *, limit: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Return the rows nearest to a vector (dimensions,), best first, by cosine."""
        points = self.points_near(vector, limit=limit, query_filter=_filter(where))
        return [_hit(point, point.score) for point in points]

    def points_near(
        self,
        vector: Vectors,
        *,
        limit: int,
        query_filter: models.Filter | None,
        is_exact: bool = False,
    ) -> list[models.ScoredPoint]:
        """Return the points nearest to a vector (dimensions,), best first, with payloads."""
        with self._guard:
            return self._client.query_points(
                self._collection,
                query=vector.tolist(),
                limit=limit,
                query_filter=query_filter,
                search_params=self._exact_params if is_exact else self._search_params,
            ).points

    def recall(self, *, limit: int = 10, num_samples: int = 100) -> float:
        """Return which share of the true nearest rows a search finds, 0 to 1.

        The rows nearest to each of `num_samples` stored vectors, as a search finds them (by an
        index, by quantized vectors) and as a comparison with every whole vector does.
        """
        step = max(1, len(self) // num_samples)
        shares: list[float] = []
        for _, vector in islice(self.rows(), 0, step * num_samples, step):
            found, true = (
                self.points_near(vector, limit=limit, query_filter=None, is_exact=is_exact)
                for is_exact in (False, True)
            )
            shares.append(len({p.id for p in found} & {p.id for p in true}) / len(true))
        return float(np.mean(shares)) if shares else 1.0

    def fetch(self, ids: Sequence[str], *, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """Return these rows in the order given, without those that are not there; score 0."""
        points: list[models.ExtendedPointId] = [int(i) if i.isdecimal() else i for i in ids]
        chosen = models.Filter(must=[*_conditions(where), models.HasIdCondition(has_id=points)])
        found = {str(one.id): one for one in self._scroll(chosen, with_payload=True)}
        return [_hit(found[one], 0.0) for one in ids if one in found]

    def is_passing(self, error: BaseException) -> bool:
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
            with self._guard:
                page, offset = self._client.scroll(
                    self._collection, chosen, PAGE,
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
    return Hit(str(point.id), score, str(facts.pop(DOCUMENT_KEY, "")), facts)


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
