"""The settings that are compared, and each measured: real searches over what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from ..cache import CachedEncoder
from ..contract import Vectors
from ..core.config import MIN_DIMENSIONS, check_choice, check_options, check_range
from ..core.prompts import WEB_SEARCH
from ..documents import make_splitter
from ..encoder import Qwen3Encoder
from ..errors import ConfigError
from ..keywords import KeywordIndex
from ..remote import RemoteEncoder
from ..rows import Hit, Where
from ..search import Qwen3Retriever, Reranker
from .data import RetrievalSet
from .evaluation import DEPTH
from .metrics import Results, measure_ranking
from .significance import Interval, PairedTest, find_intervals

# WEB_SEARCH in Chinese, our translation. The model's makers advise English, also for Chinese texts
# (QwenLM/Qwen3-Embedding#28, #137): here it is measured.
WEB_SEARCH_ZH = "给定一个网络搜索问题，检索能够回答该问题的相关段落"
ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of one dimension, in memory
MAX_SETTINGS = 200
NUM_TIMED = 20  # queries
Scores = dict[tuple[str, str], tuple[float, float]]  # (query, text): its score, its seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to search; checked when made (ConfigError)."""

    quantization: Any = None  # of the model's weights: int8, fp8 or None
    chunk_tokens: int | None = None  # of a document's pieces at most; None: documents whole
    instruction: str = WEB_SEARCH
    dimensions: int
    storage: str = "float32"  # of the vectors: float32, float16 or int8
    dense_weight: float | None = None  # of the vectors beside keywords; None: vectors alone
    rerank_depth: int = 0  # candidates that a reranker sees; 0: no reranker

    def __post_init__(self) -> None:
        check_choice("storage", self.storage, tuple(ITEM_BYTES))
        weight = self.dense_weight
        if weight is not None and not (isinstance(weight, float | int) and 0 <= weight <= 1):
            raise ConfigError(f"dense_weight is {weight!r}; choose from 0 to 1, or None")
        check_range("rerank_depth", self.rerank_depth, 0, 1000)


class Trial(NamedTuple):
    """A setting, what it reached and what it takes."""

    setting: Setting
    results: Results
    metrics: dict[str, Interval]
    bytes_per_document: float  # of its vectors in memory: one vector where documents are whole
    latency_ms: float  # of a query in this process: encoded, searched exactly, reranked; a median
    loss: PairedTest = PairedTest(0.0, 0.0, 0.0, 1.0)  # beside the best setting


def make_settings(grid: Mapping[str, Sequence[Any]], width: int) -> list[Setting]:
    """Return the settings of every combination of a grid's values, for a model so wide.

    Left out, instructions are the web search's in English and in Chinese, and dimensions the
    model's, its half, its quarter, … down to 32. Raises ConfigError for over 200 settings.
    """
    default: dict[str, Sequence[Any]] = {one.name: [one.default] for one in fields(Setting)}
    default["instruction"] = [WEB_SEARCH, WEB_SEARCH_ZH]
    default["dimensions"] = [width >> n for n in range(8) if width >> n >= MIN_DIMENSIONS]
    check_options(grid, list(default))
    axes = default | dict(grid)
    for dimensions in axes["dimensions"]:
        check_range("dimensions", dimensions, MIN_DIMENSIONS, width)
    combinations = list(product(*map(dict.fromkeys, axes.values())))
    if not 1 <= len(combinations) <= MAX_SETTINGS:
        raise ConfigError(f"these are {len(combinations)} settings; give 1 to {MAX_SETTINGS}")
    return [Setting(**dict(zip(axes, one, strict=True))) for one in combinations]


class Lab:
    """A dataset under one encoder of full width; `scores` are the reranker's so far."""

    def __init__(
        self,
        encoder: Qwen3Encoder | RemoteEncoder,
        dataset: RetrievalSet,
        reranker: Reranker | None,
        scores: Scores,
    ) -> None:
        self._encoder, self._dataset = encoder, dataset
        self._reranker, self._scores = reranker, scores
        self._known_queries = CachedEncoder(encoder)
        self._pieces, self._index = cache(self._read_pieces), cache(self._write_index)
        self._encode_s = cache(self._encode_queries)

    def measure(self, setting: Setting) -> Trial:
        """Return what a setting reaches, searched by Qwen3Retriever as a user would."""
        pieces, instruction = self._pieces(setting.chunk_tokens), setting.instruction
        encode_s = self._encode_s(instruction)
        is_hybrid = setting.dense_weight is not None
        retriever = Qwen3Retriever(
            _Store(pieces, setting),
            self._known_queries,
            keywords=self._index(setting.chunk_tokens) if is_hybrid else None,
            reranker=self if setting.rerank_depth else None,
            dense_weight=setting.dense_weight,
            candidates=setting.rerank_depth or DEPTH,
        )
        queries = self._dataset.queries.items()
        ranking = {id_: _rank(retriever, query, instruction, pieces) for id_, query in queries}
        results = measure_ranking(self._dataset, ranking)
        # By now each pair has its score: the seconds that scoring takes are added.
        search_s = self._median_s(lambda one: retriever.search(one, instruction=instruction))
        pair_s = median([seconds for _, seconds in self._scores.values()] or [0.0])
        seconds = encode_s + search_s + pair_s * setting.rerank_depth
        num_items = setting.dimensions * len(pieces.texts) / len(self._dataset.documents)
        num_bytes = num_items * ITEM_BYTES[setting.storage]
        return Trial(setting, results, find_intervals(results), num_bytes, 1000 * seconds)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float]]:
        """Return (index, score), best first, each pair scored once; the instruction is its own."""
        new = [one for one in dict.fromkeys(documents) if (query, one) not in self._scores]
        if new and self._reranker:
            start = perf_counter()
            ranked = self._reranker.rerank(query, new)
            seconds = (perf_counter() - start) / len(new)
            self._scores |= {(query, new[n]): (score, seconds) for n, score, *_ in ranked}
        scores = [self._scores[query, one][0] for one in documents]
        return sorted(enumerate(scores), key=lambda one: -one[1])[:top_n]

    def _read_pieces(self, chunk_tokens: int | None) -> _Pieces:
        owners, texts = list(self._dataset.documents), list(self._dataset.documents.values())
        if chunk_tokens is not None:
            parts = list(map(make_splitter(self._encoder.count_tokens, chunk_tokens), texts))
            owners = [id_ for id_, part in zip(owners, parts, strict=True) for _ in part]
            texts = [text for part in parts for text in part]
        return _Pieces(owners, texts, self._encoder.encode_documents(texts))

    def _write_index(self, chunk_tokens: int | None) -> KeywordIndex:
        index, texts = KeywordIndex(":memory:"), self._pieces(chunk_tokens).texts
        index.write([str(n) for n in range(len(texts))], texts)
        return index

    def _encode_queries(self, instruction: str) -> float:
        """Keep every query's vector; return the seconds that one by itself takes."""
        queries, encode = [*self._dataset.queries.values()], self._encoder.encode_queries
        self._known_queries.encode_queries(queries, instruction=instruction)
        return self._median_s(lambda query: encode([query], instruction=instruction))

    def _median_s(self, call: Callable[[str], object]) -> float:
        seconds: list[float] = []
        for query in [*self._dataset.queries.values()][:NUM_TIMED]:
            start = perf_counter()
            call(query)
            seconds.append(perf_counter() - start)
        return median(seconds)


class _Pieces(NamedTuple):
    """Documents, or pieces of them: of which document each is, its text and vector."""

    owners: list[str]
    texts: list[str]
    vectors: Vectors


class _Store:
    """Pieces with their vectors as a setting keeps them, compared one by one; a SearchStore."""

    def __init__(self, pieces: _Pieces, setting: Setting) -> None:
        self._texts = pieces.texts
        self._vectors = _cut(pieces.vectors, setting.dimensions)
        if setting.storage == "float16":
            self._vectors = self._vectors.astype(np.float16).astype(np.float32)
        elif setting.storage == "int8":  # 127 steps between the outermost half percents, as Qdrant
            low, high = np.quantile(self._vectors, (0.005, 0.995)).astype(np.float32)
            step = (high - low) / 127
            self._vectors = np.rint((self._vectors.clip(low, high) - low) / step) * step + low

    def nearest(self, vector: Vectors, *, limit: int, where: Where | None = None) -> list[Hit]:
        query = _cut(vector[None], self._vectors.shape[1])[0]
        # Rounded: equal texts get equal scores, in whatever order their products are added up.
        scores = (self._vectors @ query).round(6)
        best: list[int] = np.argsort(-scores, kind="stable")[:limit].tolist()
        return [Hit(str(n), float(scores[n]), self._texts[n], {}) for n in best]

    def fetch(self, ids: Sequence[str], *, where: Where | None = None) -> list[Hit]:
        return [Hit(id_, 0.0, self._texts[int(id_)], {}) for id_ in ids]


def _cut(vectors: Vectors, dimensions: int) -> Vectors:
    cut = vectors[:, :dimensions]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


def _rank(
    retriever: Qwen3Retriever, query: str, instruction: str, pieces: _Pieces
) -> list[tuple[str, float]]:
    """Return the documents of the first pieces, DEPTH of them or more; the first place counts."""
    limit = DEPTH
    while True:
        hits = retriever.search(query, limit=limit, instruction=instruction)
        ranked = [(pieces.owners[int(hit.id)], hit.score) for hit in hits]
        if len({owner for owner, _ in ranked}) >= DEPTH or len(hits) < limit:
            return ranked
        limit *= 4
