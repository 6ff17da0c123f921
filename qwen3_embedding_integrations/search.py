"""Qwen3Retriever: keywords and vectors together, exact references first, in one or two stages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from .contract import Encoder, Vectors
from .core.config import check_choice, check_range
from .core.streaming import divide
from .errors import ConfigError, InputError
from .fusion import fuse_ranks, fuse_scores
from .keywords import KeywordIndex
from .rows import Hit, SearchStore, Where

Fusion = Literal["scores", "ranks"]

# Chosen on development questions: benchmarks/search.py, benchmarks/results/search.md.
DENSE_WEIGHT = 0.5
TINY_DENSE_WEIGHT = 0.1  # on words that question and text share, BM25 beats the tiny model
FUSIONS: dict[str, Callable[..., list[tuple[str, float]]]] = {
    "scores": fuse_scores,
    "ranks": fuse_ranks,
}
IDS_AT_ONCE = 1000  # of one fetch: stores turn ids into parameters of a statement
MAX_RESULTS = 100_000  # offset + limit: deeper pages are a mistake


@runtime_checkable
class Reranker(Protocol):
    """A second look at the documents of one query."""

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> Sequence[Any]:
        """Return (index, score, …) of the `top_n` best documents, or of all, best first."""
        ...


class EncoderReranker:
    """A second stage by another, bigger embedding model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float, str]]:
        """Return (index, cosine, document) of the `top_n` nearest to the query; all by default."""
        if not documents:
            return []
        vector = self.encoder.encode_queries([query], instruction=instruction)[0]
        scores = self.encoder.encode_documents(documents) @ vector  # (N,) float32
        order: list[int] = np.argsort(-scores, kind="stable")[:top_n].tolist()
        return [(index, float(scores[index]), documents[index]) for index in order]


class Qwen3Retriever:
    """Search over a store: vectors, keywords, exact references, and a second stage.

    `keywords` adds BM25 (`fusion="scores"`, or "ranks" for reciprocal rank fusion, with
    `dense_weight` from 0, keywords alone, to 1, vectors alone) and puts the texts that a reference
    in the query names first. `reranker` has a second look at the first `candidates`: anything with
    `rerank`, or a bigger encoder. Every method may be called from any thread or event loop.

    Pages continue each other: the order of results does not depend on `limit` and `offset`. Raises
    ConfigError for options that cannot be.
    """

    def __init__(
        self,
        store: SearchStore,
        encoder: Encoder,
        *,
        keywords: KeywordIndex | None = None,
        reranker: Reranker | Encoder | None = None,
        fusion: Fusion = "scores",
        dense_weight: float | None = None,
        candidates: int = 100,
    ) -> None:
        check_choice("fusion", fusion, tuple(FUSIONS))
        check_range("candidates", candidates, 1, MAX_RESULTS)
        if dense_weight is not None and not 0 <= dense_weight <= 1:
            raise ConfigError(f"dense_weight is {dense_weight}; choose a number from 0 to 1")
        self.store = store
        self.encoder = encoder
        self.keywords = keywords
        self.reranker = _as_reranker(reranker)
        self.candidates = candidates
        self._fuse = FUSIONS[fusion]
        self._dense_weight = dense_weight

    @property
    def dense_weight(self) -> float:
        """What the vectors count beside the keywords: as given, or fit for the encoder."""
        if self._dense_weight is not None:
            return self._dense_weight
        return TINY_DENSE_WEIGHT if self.encoder.contract.model == "tiny" else DENSE_WEIGHT

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        offset: int = 0,
        where: Where | None = None,
        instruction: str | None = None,
    ) -> list[Hit]:
        """Return up to `limit` hits behind the first `offset`, best first.

        `where` keeps what has these values: {"source": "a.txt", "year": [2020, 2021]}.
        `instruction` stands for the encoder's own, and for the reranker's. Raises InputError for a
        query that cannot be encoded.
        """
        _check(query, limit, offset)
        vector = self.encoder.encode_queries([query], instruction=instruction)[0]
        return self._search(query, vector, limit, offset, where, instruction)

    async def asearch(
        self,
        query: str,
        *,
        limit: int = 10,
        offset: int = 0,
        where: Where | None = None,
        instruction: str | None = None,
    ) -> list[Hit]:
        """Return what `search` returns, without blocking the event loop."""
        _check(query, limit, offset)
        vector = (await self.encoder.aencode_queries([query], instruction=instruction))[0]
        return await asyncio.to_thread(
            self._search, query, vector, limit, offset, where, instruction
        )

    def _search(
        self,
        query: str,
        vector: Vectors,
        limit: int,
        offset: int,
        where: Where | None,
        instruction: str | None,
    ) -> list[Hit]:
        size, found = self.candidates, self._matches(query, where)
        ranked: list[Hit] = []
        seen: set[str] = set()
        # The ranking is made in blocks of as many candidates, each fused by itself: a block does
        # not depend on how many are asked for, so pages of any size fit together.
        for end in count(size, size):
            dense = self.store.nearest(vector, limit=end, where=where)[end - size :]
            matches = list(islice(found, size))
            block = self._fused(dense, matches)
            if not ranked:
                block = self._first_block(query, block, where, instruction)
            new = [hit for hit in block if hit.id not in seen]
            seen.update(hit.id for hit in new)
            ranked += _falling(new, ranked[-1].score if ranked else None)
            is_last = max(len(dense), len(matches)) < size
            if is_last or len(ranked) >= offset + limit:
                break
        return ranked[offset : offset + limit]

    def _matches(self, query: str, where: Where | None) -> Iterator[Hit]:
        """Yield what the keywords find, as far as the store has it and the filter allows it."""
        num_asked, num_found = self.candidates, 0
        while self.keywords is not None:
            found = dict(self.keywords.search(query, num_asked, offset=num_found))
            for hit in self._fetch(list(found), where):
                yield hit._replace(score=found[hit.id])
            if len(found) < num_asked:
                return
            num_found += len(found)
            num_asked *= 4  # a filter that few texts pass: fewer, larger looks

    def _fetch(self, ids: list[str], where: Where | None) -> list[Hit]:
        parts = divide(ids, IDS_AT_ONCE)
        return [hit for part in parts for hit in self.store.fetch(part, where=where)]

    def _fused(self, dense: list[Hit], matches: list[Hit]) -> list[Hit]:
        """Return the hits of both rankings, best first."""
        if self.keywords is None:
            return dense
        hits = {hit.id: hit for hit in (*matches, *dense)}
        scores = self._fuse(_ranking(dense), _ranking(matches), dense_weight=self.dense_weight)
        return [hits[id_]._replace(score=score) for id_, score in scores]

    def _first_block(
        self, query: str, hits: list[Hit], where: Where | None, instruction: str | None
    ) -> list[Hit]:
        """Return the hits in their final order: reranked, and what the query names first."""
        named = {} if self.keywords is None else dict(self.keywords.find_references(query))
        known = {hit.id for hit in hits}
        added = self._fetch([id_ for id_ in named if id_ not in known], where)
        hits = [*hits, *(hit._replace(score=0.0) for hit in added)]
        if self.reranker is not None and hits:
            some = hits[: self.candidates]
            texts = [hit.text for hit in some]
            # Only where it is given: a reranker of another make need not know instructions.
            given: dict[str, Any] = {} if instruction is None else {"instruction": instruction}
            order = self.reranker.rerank(query, texts, **given)
            better = {index: some[index]._replace(score=float(score)) for index, score, *_ in order}
            left_out = [hit for index, hit in enumerate(some) if index not in better]
            hits = _falling([*better.values(), *left_out, *hits[self.candidates :]])
        first = [hit for hit in hits if hit.id in named]
        if not first:
            return hits
        first.sort(key=lambda hit: -named[hit.id])
        top = max(hit.score for hit in hits)
        rest = [hit for hit in hits if hit.id not in named]
        return [hit._replace(score=top) for hit in first] + rest


def _ranking(hits: Sequence[Hit]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


def _falling(hits: list[Hit], highest: float | None = None) -> list[Hit]:
    """Return the hits with no score above the one before: blocks and stages score by themselves."""
    falling: list[Hit] = []
    for hit in hits:
        highest = hit.score if highest is None else min(highest, hit.score)
        falling.append(hit._replace(score=highest))
    return falling


def _as_reranker(given: Reranker | Encoder | None) -> Reranker | None:
    if given is None or isinstance(given, Reranker):
        return given
    if hasattr(given, "encode_documents"):
        return EncoderReranker(given)
    raise ConfigError(
        f"reranker is a {type(given).__name__}; give an object with rerank(), or an encoder"
    )


def _check(query: object, limit: int, offset: int) -> None:
    if not isinstance(query, str):
        raise InputError(f"the query is a {type(query).__name__}; pass a str")
    if limit < 1 or offset < 0 or offset + limit > MAX_RESULTS:
        raise ConfigError(
            f"limit is {limit}, offset {offset}; limit starts at 1, offset at 0, and together they "
            f"are at most {MAX_RESULTS:,}"
        )
