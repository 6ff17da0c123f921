"""Qwen3Collection: a Qdrant collection created, checked, filled and searched."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models

from ..contract import EmbeddingContract, Encoder
from ..core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions, check_range
from ..errors import ConfigError, ContractMismatchError
from ..handle import Held
from ..indexing.pipeline import Host
from ..sharing import shared_encoder
from .client import connect, current_name, stored_contract
from .points import payloads_of, point_ids
from .storage import Storage, create
from .store import QdrantStore


class Qwen3Collection(Held):
    """A Qdrant collection of Qwen3 vectors.

    `client` is a QdrantClient, a URL ("http://localhost:6333", asked by gRPC where it answers), a
    folder or ":memory:". Takes every option of `EncoderConfig` by name, or a ready `encoder`. A
    collection that is not there is made, with the right width, cosine distance and the contract in
    its metadata; one that was made under another contract is refused with the differing fields
    (ContractMismatchError), unless `allow_mismatch=True`. `storage` is for a new collection on a
    server: "float16", "int8" or "binary" take 1/2, 1/4, 1/32 of float32's memory; the last two are
    rescored by whole vectors on disk (`store.recall()` measures what that loses). While the server
    is away, busy (429) or answers 5xx, a write is repeated for `retry_s` seconds.

    >>> from qwen3_embedding_integrations.qdrant import Qwen3Collection
    >>> articles = Qwen3Collection(":memory:", "articles", model="tiny")
    >>> ids = articles.upsert(["Paris is in France.", "垫子上有猫"], payloads=[{"n": 1}, {"n": 2}])
    >>> [point.payload["n"] for point in articles.query("a cat on a mat", limit=1)]
    [2]
    """

    def __init__(
        self,
        client: QdrantClient | str,
        name: str,
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        storage: Storage = "float32",
        retry_s: int = 60,
        allow_mismatch: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> None:
        if encoder is not None and (options or model):
            raise ConfigError("give either encoder or options, not both")
        check_range("retry_s", retry_s, 0, 1_000_000)
        config = EncoderConfig.from_options(model or DEFAULT_MODEL, **options)
        self.encoder = encoder or shared_encoder(config)
        self._storage: Storage = storage
        self.client = connect(client) if isinstance(client, str) else client
        self._owns_client = isinstance(client, str)
        try:
            self.name = current_name(self.client, name)
            self.store = QdrantStore(self.client, self.name)
            self._host = Host(self.store, retry_s)
            self._open(allow_mismatch=allow_mismatch)
        except BaseException:
            self.close()
            raise

    def upsert(
        self,
        documents: Sequence[str],
        ids: Sequence[int | str | uuid.UUID] | None = None,
        payloads: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int | str]:
        """Write one point per document, searchable on return; return the points' ids in order.

        While one batch is uploaded the next is encoded. Ids may be ints, UUIDs or any other
        strings (which become UUIDs, always the same ones); without ids, the same document gets the
        same id again, so that a repeated call changes nothing, and equal documents within a call
        stay apart. The document is kept in the payload under "document", beside what `payloads`
        gives. Raises InputError before anything is written when the lists do not fit together,
        IndexingError when the server refuses a write or fails for longer than `retry_s`.
        """
        if isinstance(documents, str) or not isinstance(documents, Sequence):
            raise TypeError(f"documents is a {type(documents).__name__}; pass a list of str")
        ids_given = point_ids(documents, ids)
        rows = payloads_of(documents, payloads)
        start = 0
        for vectors in self.encoder.stream_documents(documents):
            part = slice(start, start + len(vectors))
            points = {"ids": ids_given[part], "payloads": rows[part]}
            self._host.ask("upsert", partial(self.store.upload, vectors, **points))
            start = part.stop
        return ids_given

    def query(
        self,
        query: str,
        *,
        limit: int = 10,
        query_filter: models.Filter | None = None,
        instruction: str | None = None,
    ) -> list[models.ScoredPoint]:
        """Return the `limit` best points for a query, best first, with payloads."""
        vector = self.encoder.encode_queries([query], instruction=instruction)[0]
        return self.nearest(vector, limit=limit, query_filter=query_filter)

    async def aquery(
        self,
        query: str,
        *,
        limit: int = 10,
        query_filter: models.Filter | None = None,
        instruction: str | None = None,
    ) -> list[models.ScoredPoint]:
        """Return what `query` returns, without blocking the event loop."""
        vectors = await self.encoder.aencode_queries([query], instruction=instruction)
        return await asyncio.to_thread(
            self.nearest, vectors[0], limit=limit, query_filter=query_filter
        )

    def nearest(
        self,
        vector: npt.NDArray[np.float32],
        *,
        limit: int = 10,
        query_filter: models.Filter | None = None,
    ) -> list[models.ScoredPoint]:
        """Return the `limit` best points for a vector (dimensions,), best first, with payloads."""
        return self.store.points_near(vector, limit=limit, query_filter=query_filter)

    def __len__(self) -> int:
        return len(self.store)

    def close(self) -> None:
        """Close the client if this object made it."""
        if self._owns_client:
            self.client.close()

    def _open(self, *, allow_mismatch: bool) -> None:
        contract = self.encoder.contract
        if not self.client.collection_exists(self.name):
            try:
                self._create(contract)
            except Exception:
                if not self.client.collection_exists(self.name):  # else another process was first
                    raise
        config = self.client.get_collection(self.name).config
        index = f"Qdrant collection {self.name!r}"
        self._check_vectors(config.params.vectors, index)
        stored = stored_contract(self.client, self.name)
        if stored is not None:
            contract.require_match(stored, index=index, allow_mismatch=allow_mismatch)
        elif not allow_mismatch:
            raise ContractMismatchError(
                f"{index} holds no contract: it was made by another program, or on a server before "
                "1.16, which keeps no metadata. Use another name, or pass allow_mismatch=True if "
                "you know that its vectors are this model's",
                differences=[("contract", None, contract.fingerprint)],
            )

    def _create(self, contract: EmbeddingContract) -> None:
        config = getattr(self.encoder, "config", None)
        portable = config.portable() if isinstance(config, EncoderConfig) else None
        create(self.client, self.name, contract, portable, self._storage)

    def _check_vectors(self, stored: Any, index: str) -> None:
        """Refuse a collection whose vectors cannot hold ours; no override can make them fit."""
        if not isinstance(stored, models.VectorParams):
            raise ContractMismatchError(
                f"{index} has named vectors {sorted(stored or {})}, this class writes one unnamed "
                "vector per point; use another name",
                differences=[("vectors", sorted(stored or {}), "")],
            )
        facts = [
            ("dimensions", stored.size, self.encoder.dimensions),
            ("distance", stored.distance, models.Distance.COSINE),
        ]
        if differences := [fact for fact in facts if fact[1] != fact[2]]:
            described = "; ".join(f"{f}: stored {s}, yours {g}" for f, s, g in differences)
            raise ContractMismatchError(
                f"{index} cannot hold your vectors: {described}. Give dimensions={stored.size} if "
                "its vectors are this model's, or use another name",
                differences=differences,
            )
