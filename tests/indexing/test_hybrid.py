"""HybridStore: what jobs write is found by its words too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen3_embedding_integrations import (
    HybridStore,
    IndexingError,
    KeywordIndex,
    Qwen3Encoder,
    Qwen3Retriever,
    index_documents,
)
from qwen3_embedding_integrations.documents import Document
from tests.stores import make_documents, open_sink


@pytest.fixture(params=["chroma", "qdrant"])
def store(request: pytest.FixtureRequest, tmp_path: Path, tiny: Qwen3Encoder) -> Iterator[object]:
    """Yield an empty collection of each store."""
    with open_sink(request.param, tmp_path / "store", tiny) as one:
        yield one


def test_words_follow_what_a_job_does(store, tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """Added, changed and pruned documents are so in the keyword index; titles count."""
    with KeywordIndex(tmp_path / "words") as keywords:
        hybrid = HybridStore(store, keywords)
        documents = [*make_documents(40), Document("夫妻离婚", "law.md", 0, "第一千零七十九条")]
        index_documents(documents, tiny, hybrid)
        assert len(keywords) == len(store) == 41
        retriever = Qwen3Retriever(hybrid, tiny, keywords=keywords)
        assert retriever.search("第1079条", limit=1)[0].facts["source"] == "law.md"

        documents[0] = Document("zebra", "0.txt", 0)
        index_documents(documents, tiny, hybrid)
        assert [text for text in _texts(retriever, "zebra", 1)] == ["zebra"]
        report = index_documents(documents[:4], tiny, hybrid, prune=True)
        assert report.removed == 37
        assert len(keywords) == len(store) == 4
        assert not keywords.search("离婚", 5)


def test_an_index_that_was_lost_is_made_again(store, tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """A collection filled without keywords, or whose keyword file is gone, is caught up with."""
    index_documents(make_documents(1200), tiny, store)
    with KeywordIndex(tmp_path / "words") as keywords:
        hybrid = HybridStore(store, keywords)
        assert len(keywords) == 1200
        retriever = Qwen3Retriever(hybrid, tiny, keywords=keywords, dense_weight=0.0)
        assert _texts(retriever, "note 777", 1) == ["note 777 第777条"]


class DiesAfterDeleting:
    """A store whose rows are gone when the caller hears of it last."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def delete(self, ids: Sequence[str | int]) -> None:
        self._store.delete(ids)
        raise RuntimeError("the machine is gone")

    def __len__(self) -> int:
        return len(self._store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_deletion_that_dies_leaves_no_words(store, tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """What a job had deleted when it died leaves nothing in the keyword index after the next."""
    documents = make_documents(40)
    with KeywordIndex(tmp_path / "words") as keywords:
        index_documents(documents, tiny, HybridStore(store, keywords))
        dying: Any = DiesAfterDeleting(store)
        with pytest.raises(IndexingError, match="the machine is gone"):
            index_documents(documents[:6], tiny, HybridStore(dying, keywords))
        index_documents(documents[:6], tiny, HybridStore(store, keywords))
        assert len(keywords) == len(store) == 38


def _texts(retriever: Qwen3Retriever, query: str, limit: int) -> list[str]:
    return [hit.text for hit in retriever.search(query, limit=limit)]


def test_a_real_reranker_as_second_stage(store, tiny: Qwen3Encoder, reranker) -> None:
    """The first candidates come in the reranker's order, with its scores, under its instruction."""
    index_documents(make_documents(30), tiny, store)
    retriever = Qwen3Retriever(store, tiny, reranker=reranker, candidates=20)
    for instruction in (None, "Find the oldest note"):
        hits = retriever.search("note 7", limit=20, instruction=instruction)
        texts = [hit.text for hit in hits]
        first = Qwen3Retriever(store, tiny).search("note 7", limit=20, instruction=instruction)
        assert sorted(texts) == sorted(hit.text for hit in first)
        ranked = reranker.rerank("note 7", texts, instruction=instruction)
        assert [one.document for one in ranked] == texts
        assert [hit.score for hit in hits] == pytest.approx([one.score for one in ranked], abs=1e-5)
