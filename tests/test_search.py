"""Qwen3Retriever over a store in memory, over Chroma and over Qdrant."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import chromadb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    EncoderReranker,
    Hit,
    InputError,
    KeywordIndex,
    Qwen3Encoder,
    Qwen3Retriever,
    shared_encoder,
)
from qwen3_embedding_integrations.demo import load_questions, load_texts
from qwen3_embedding_integrations.fusion import fuse_ranks, fuse_scores
from tests.memory_store import MemoryStore

TEXTS = {
    text.id: (
        f"{text.id}\n{text.document}",
        {"language": "en" if text.id.startswith("help") else "zh", "parity": n % 3},
    )
    for n, text in enumerate(load_texts())
}
QUERIES = [
    "房东要卖房，我作为租客能优先买吗？",
    "How do I restore a deleted note?",
    "民法典第一千零八十二条",
    "invoice § 1082",
    "离婚 divorce 第1079条",
]


@pytest.fixture(scope="module")
def store(tiny: Qwen3Encoder) -> MemoryStore:
    return MemoryStore(tiny, TEXTS)


@pytest.fixture(scope="module")
def keywords() -> Iterator[KeywordIndex]:
    with KeywordIndex(":memory:") as index:
        index.write(list(TEXTS), [text for text, _ in TEXTS.values()])
        yield index


@pytest.fixture(scope="module")
def hybrid(store: MemoryStore, tiny: Qwen3Encoder, keywords: KeywordIndex) -> Qwen3Retriever:
    return Qwen3Retriever(store, tiny, keywords=keywords)


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


Rankings = st.lists(
    st.tuples(st.integers(0, 30).map(str), st.floats(-5, 5)), unique_by=lambda one: one[0]
).map(lambda ranking: sorted(ranking, key=lambda one: -one[1]))


@given(Rankings, Rankings, st.floats(0, 1))
def test_reciprocal_rank_fusion_is_the_formula(
    dense: list[tuple[str, float]], keywords: list[tuple[str, float]], weight: float
) -> None:
    """Each document gets the sum of weight / (60 + rank), and the sums fall."""
    fused = fuse_ranks(dense, keywords, dense_weight=weight)
    for id_, score in fused:
        expected = 0.0
        for ranking, share in ((dense, weight), (keywords, 1 - weight)):
            names = [name for name, _ in ranking]
            expected += share / (61 + names.index(id_)) if id_ in names else 0.0
        assert score == pytest.approx(expected)
    assert {id_ for id_, _ in fused} == {id_ for id_, _ in (*dense, *keywords)}
    assert [score for _, score in fused] == sorted((s for _, s in fused), reverse=True)


@given(Rankings, Rankings, st.floats(0, 1))
def test_score_fusion_is_the_formula(
    dense: list[tuple[str, float]], keywords: list[tuple[str, float]], weight: float
) -> None:
    """Each document gets its weighted distance from the last score, in standard deviations."""
    fused = dict(fuse_scores(dense, keywords, dense_weight=weight))
    expected = dict.fromkeys(fused, 0.0)
    for ranking, share in ((dense, weight), (keywords, 1 - weight)):
        scores = np.array([score for _, score in ranking])
        if len(scores) and scores.std() < 1e-6:
            return  # all alike: see the test below
        for id_, score in ranking:
            expected[id_] += share * (score - scores[-1]) / scores.std()
    assert fused == pytest.approx(expected, abs=1e-6)


def test_fusion_of_scores_all_alike_and_of_nothing() -> None:
    """Equal scores count one deviation each; an empty ranking leaves the other's order."""
    assert fuse_scores([("a", 0.5)], [("b", 2.0), ("c", 2.0)], dense_weight=0.75) == [
        ("a", 0.75),
        ("b", 0.25),
        ("c", 0.25),
    ]
    alone = fuse_scores([("a", 0.9), ("b", 0.5)], [], dense_weight=0.2)
    assert [id_ for id_, _ in alone] == ["a", "b"]
    assert fuse_scores([], [], dense_weight=0.5) == []


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("fusion", ["scores", "ranks"])
def test_hybrid_is_the_fusion_of_both_with_the_named_first(
    query: str,
    fusion: Any,
    store: MemoryStore,
    tiny: Qwen3Encoder,
    keywords: KeywordIndex,
) -> None:
    """The first block is what the formulas give from both rankings, made here by themselves."""
    retriever = Qwen3Retriever(
        store, tiny, keywords=keywords, fusion=fusion, dense_weight=0.4, candidates=20
    )
    dense = store.nearest(tiny.encode_queries([query])[0], limit=20)
    fuse = {"scores": fuse_scores, "ranks": fuse_ranks}[fusion]
    fused = fuse([hit[:2] for hit in dense], keywords.search(query, 20), dense_weight=0.4)
    named = [id_ for id_, _ in keywords.find_references(query)]
    expected = named + [id_ for id_, _ in fused if id_ not in named]
    hits = retriever.search(query, limit=20)
    assert ids(hits) == expected[:20]
    assert all(hit.text == TEXTS[hit.id][0] and hit.facts == TEXTS[hit.id][1] for hit in hits)


def test_without_keywords_it_is_the_stores_own_order(
    store: MemoryStore, tiny: Qwen3Encoder
) -> None:
    """Vectors alone: the nearest, with their cosines, on every page."""
    retriever = Qwen3Retriever(store, tiny, candidates=7)
    nearest = store.nearest(tiny.encode_queries([QUERIES[0]])[0], limit=40)
    hits = retriever.search(QUERIES[0], limit=20) + retriever.search(
        QUERIES[0], limit=20, offset=20
    )
    assert ids(hits) == ids(nearest)
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in nearest], abs=1e-6)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("where", [None, {"language": "zh"}, {"language": "en", "parity": [0, 2]}])
def test_pages_continue_each_other_to_the_end(
    query: str, where: dict[str, Any] | None, store: MemoryStore, tiny: Qwen3Encoder
) -> None:
    """Pages of any size are cuts of one order, without repeats, and reach all that is allowed."""
    with KeywordIndex(":memory:") as index:
        index.write([*TEXTS, "gone"], [*(text for text, _ in TEXTS.values()), f"not there {query}"])
        retriever = Qwen3Retriever(store, tiny, keywords=index, candidates=15)
        whole = retriever.search(query, limit=1000, where=where)
        assert sorted(ids(whole)) == sorted(id_ for id_ in TEXTS if store.allows(id_, where))
        scores = [hit.score for hit in whole]
        assert scores == sorted(scores, reverse=True)
        for size in (3, 8, 33):
            pages = [
                hit
                for start in range(0, 33, size)
                for hit in retriever.search(query, limit=size, offset=start, where=where)
            ]
            assert pages == whole[: len(pages)]
        assert retriever.search(query, limit=5, offset=len(whole), where=where) == []


@pytest.mark.parametrize("query", QUERIES)
def test_filters_hold_for_every_road(query: str, hybrid: Qwen3Retriever) -> None:
    """Vectors, keywords and references: none brings what the filter forbids."""
    for where in ({"language": "en"}, {"language": ["zh"], "parity": 1}, {"parity": 9}):
        hits = hybrid.search(query, limit=50, where=where)
        assert len(hits) == (0 if where == {"parity": 9} else min(50, len(hits)))
        for hit in hits:
            for field, value in where.items():
                assert hit.facts[field] in (value if isinstance(value, list) else [value])


def test_a_narrow_filter_still_finds_by_keyword(store: MemoryStore, tiny: Qwen3Encoder) -> None:
    """The one allowed text is found by its words, however far down it stands."""
    with KeywordIndex(":memory:") as index:
        index.write(list(TEXTS), ["common"] * len(TEXTS))
        last = list(TEXTS)[-1]
        only = MemoryStore(tiny, {last: (TEXTS[last][0], {"only": True})})
        only.documents |= {id_: one for id_, one in TEXTS.items() if id_ != last}
        retriever = Qwen3Retriever(only, tiny, keywords=index, candidates=5, dense_weight=0)
        assert ids(retriever.search("common", where={"only": True})) == [last]


def test_articles_come_first_by_number_in_five_notations(hybrid: Qwen3Retriever) -> None:
    """The article itself is the first hit, whatever the vectors say."""
    for id_, number in (("民法典第一千零八十二条", 1082), ("民法典第十七条", 17)):
        for query in (
            id_,
            f"民法典第{number}条",
            f"《中华人民共和国民法典》第{number}条规定了什么？",
            f"民法典 § {number}",
            f"Article {number} of the Civil Code",
        ):
            assert hybrid.search(query, limit=1)[0].id == id_, query


def test_the_demo_questions_are_answered(
    store: MemoryStore, tiny: Qwen3Encoder, keywords: KeywordIndex
) -> None:
    """At equal weights, questions in either language find their texts in either among three."""
    hybrid = Qwen3Retriever(store, tiny, keywords=keywords, dense_weight=0.5)
    for question in load_questions():
        assert question["expected"] in ids(hybrid.search(question["question"], limit=3))


class Backwards:
    """A reranker that prefers short texts, and notes what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, str | None]] = []

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float, str]]:
        self.given.append((len(documents), instruction))
        order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
        return [(index, 1 / len(documents[index]), documents[index]) for index in order[:top_n]]


def test_the_second_stage_orders_the_candidates_alone(
    store: MemoryStore, tiny: Qwen3Encoder, keywords: KeywordIndex
) -> None:
    """The first candidates come in the reranker's order, the rest behind them as before."""
    query, reranker = QUERIES[0], Backwards()
    first = Qwen3Retriever(store, tiny, keywords=keywords, candidates=12)
    second = Qwen3Retriever(store, tiny, keywords=keywords, candidates=12, reranker=reranker)
    before, after = first.search(query, limit=40), second.search(query, limit=40)
    assert ids(after[:12]) == ids(sorted(before[:12], key=lambda hit: len(hit.text)))
    assert ids(after[12:]) == ids(before[12:])
    second.search(query, instruction="Find the law")
    assert reranker.given == [(12, None), (12, "Find the law")]
    assert [hit.score for hit in after] == sorted((hit.score for hit in after), reverse=True)
    assert after[0].score == 1 / len(after[0].text)


def test_what_the_query_names_stays_first_behind_a_reranker(
    store: MemoryStore, tiny: Qwen3Encoder, keywords: KeywordIndex
) -> None:
    """A reranker that prefers other texts does not displace the article asked for."""
    retriever = Qwen3Retriever(store, tiny, keywords=keywords, reranker=Backwards())
    assert retriever.search("民法典第1082条", limit=3)[0].id == "民法典第一千零八十二条"


def test_a_bigger_encoder_is_a_second_stage(store: MemoryStore, tiny: Qwen3Encoder) -> None:
    """Recall with 32 dimensions, ordered by the whole width: the order of a brute force."""
    narrow = shared_encoder(EncoderConfig(model="tiny", dtype="float32", dimensions=32))
    small = MemoryStore(narrow, dict(list(TEXTS.items())[-60:]))
    query, instruction = QUERIES[1], "Find the help article"
    retriever = Qwen3Retriever(small, narrow, reranker=tiny, candidates=30)
    recalled = small.nearest(narrow.encode_queries([query], instruction=instruction)[0], limit=30)
    vector = tiny.encode_queries([query], instruction=instruction)[0]
    cosines = tiny.encode_documents([hit.text for hit in recalled]) @ vector
    expected = [recalled[i].id for i in np.argsort(-cosines, kind="stable")]
    hits = retriever.search(query, limit=30, instruction=instruction)
    assert ids(hits) == expected
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    assert EncoderReranker(tiny).rerank(query, []) == []


async def test_async_results_are_the_sync_ones_and_the_loop_runs(hybrid: Qwen3Retriever) -> None:
    """Searches awaited together return what they return alone, while the loop ticks."""
    expected = [hybrid.search(query, limit=5, where={"parity": 1}) for query in QUERIES]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    found = await asyncio.gather(
        *(hybrid.asearch(query, limit=5, where={"parity": 1}) for query in QUERIES)
    )
    ticking.cancel()
    for hits, wanted in zip(found, expected, strict=True):
        assert ids(hits) == ids(wanted)
    assert ticks > 1


def test_options_that_cannot_be_are_refused(store: MemoryStore, tiny: Qwen3Encoder) -> None:
    """Each wrong option is named with its value and what is allowed."""
    for options, message in [
        ({"fusion": "best"}, "fusion is 'best'; choose one of 'scores', 'ranks'"),
        ({"dense_weight": 1.5}, "dense_weight is 1.5; choose a number from 0 to 1"),
        ({"candidates": 0}, "candidates is 0"),
        ({"reranker": object()}, "reranker is a object"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Qwen3Retriever(store, tiny, **options)
    retriever = Qwen3Retriever(store, tiny)
    for page in ({"limit": 0}, {"offset": -1}, {"limit": 100_000, "offset": 1}):
        with pytest.raises(ConfigError, match="limit is"):
            retriever.search("a", **page)
    with pytest.raises(InputError, match="the query is a list"):
        retriever.search(["a"])  # pyright: ignore[reportArgumentType]


def test_the_weight_fits_the_encoder(store: MemoryStore, tiny: Qwen3Encoder) -> None:
    """The small model counts less beside keywords than a real one; a given weight holds."""
    assert Qwen3Retriever(store, tiny).dense_weight < 0.5
    assert Qwen3Retriever(store, tiny, dense_weight=0.7).dense_weight == 0.7


CHROMA_KEYS = ("ids", "distances", "documents", "metadatas")


class ChromaThin:
    """Chroma as a SearchStore, as thin as can be."""

    def __init__(self, store: MemoryStore) -> None:
        client = chromadb.EphemeralClient()
        name = f"search{random.randrange(10**9)}"
        # Wide enough to be exact: with the default widths the graph, drawn by chance, misses some.
        hnsw: Any = {
            "space": "cosine",
            "ef_construction": 500,
            "ef_search": 500,
            "max_neighbors": 64,
        }
        self.collection = client.create_collection(
            name, configuration={"hnsw": hnsw}, embedding_function=None
        )
        texts = [text for text, _ in TEXTS.values()]
        self.collection.add(
            ids=list(TEXTS),
            embeddings=store.vectors,
            documents=texts,
            metadatas=[facts for _, facts in TEXTS.values()],
        )

    def filter(self, where: Mapping[str, Any] | None) -> Any:
        parts = [
            {field: {"$in": value if isinstance(value, list) else [value]}}
            for field, value in (where or {}).items()
        ]
        return None if not parts else parts[0] if len(parts) == 1 else {"$and": parts}

    def nearest(self, vector: Any, *, limit: int, where: Any = None) -> list[Hit]:
        found = self.collection.query(
            query_embeddings=[vector], n_results=limit, where=self.filter(where)
        )
        rows = zip(*(found[key][0] for key in CHROMA_KEYS), strict=True)
        return [Hit(id_, 1 - far, text, dict(facts)) for id_, far, text, facts in rows]

    def fetch(self, wanted: Sequence[str], *, where: Any = None) -> list[Hit]:
        found = self.collection.get(ids=list(wanted), where=self.filter(where))
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        hits = {id_: Hit(id_, 0.0, text, dict(facts)) for id_, text, facts in rows}
        return [hits[id_] for id_ in wanted if id_ in hits]


class QdrantThin:
    """Qdrant as a SearchStore, as thin as can be; ids are places in TEXTS."""

    def __init__(self, store: MemoryStore) -> None:
        self.client = QdrantClient(":memory:")
        size = models.VectorParams(size=store.vectors.shape[1], distance=models.Distance.COSINE)
        self.client.create_collection("search", vectors_config=size)
        points = [
            models.PointStruct(id=n, vector=store.vectors[n].tolist(), payload={"id": id_, **facts})
            for n, (id_, (_, facts)) in enumerate(TEXTS.items())
        ]
        self.client.upsert("search", points)
        self.number = {id_: n for n, id_ in enumerate(TEXTS)}

    def filter(self, where: Mapping[str, Any] | None, *more: Any) -> models.Filter:
        parts: list[Any] = [
            models.FieldCondition(
                key=field,
                match=models.MatchAny(any=value if isinstance(value, list) else [value]),
            )
            for field, value in (where or {}).items()
        ]
        return models.Filter(must=[*parts, *more])

    def hit(self, payload: dict[str, Any], score: float) -> Hit:
        facts = dict(payload)
        id_ = facts.pop("id")
        return Hit(id_, score, TEXTS[id_][0], facts)

    def nearest(self, vector: Any, *, limit: int, where: Any = None) -> list[Hit]:
        found = self.client.query_points(
            "search", query=vector, limit=limit, query_filter=self.filter(where)
        )
        return [self.hit(point.payload or {}, point.score) for point in found.points]

    def fetch(self, wanted: Sequence[str], *, where: Any = None) -> list[Hit]:
        numbers: list[Any] = [self.number[id_] for id_ in wanted if id_ in self.number]
        condition = self.filter(where, models.HasIdCondition(has_id=numbers))
        found, _ = self.client.scroll("search", scroll_filter=condition, limit=len(TEXTS))
        hits = [self.hit(point.payload or {}, 0.0) for point in found]
        by_id = {hit.id: hit for hit in hits}
        return [by_id[id_] for id_ in wanted if id_ in by_id]


@pytest.mark.parametrize("thin", [ChromaThin, QdrantThin])
def test_real_stores_give_what_the_brute_force_gives(
    thin: Any,
    store: MemoryStore,
    tiny: Qwen3Encoder,
    keywords: KeywordIndex,
    hybrid: Qwen3Retriever,
) -> None:
    """The same hits in the same order, filtered and paged, from Chroma and from Qdrant."""
    retriever = Qwen3Retriever(thin(store), tiny, keywords=keywords)
    for query in QUERIES:
        for where in (None, {"language": "zh", "parity": [1, 2]}):
            expected = hybrid.search(query, limit=12, where=where)
            pages = [
                *retriever.search(query, limit=5, where=where),
                *retriever.search(query, limit=7, offset=5, where=where),
            ]
            assert ids(pages) == ids(expected)
            assert [hit.facts for hit in pages] == [hit.facts for hit in expected]
