"""A Qwen3Retriever as LangChain's and as LlamaIndex's retriever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests
from llama_index.core.base.base_retriever import BaseRetriever as LlamaRetriever

from qwen3_embedding_integrations import ConfigError, KeywordIndex, Qwen3Encoder, Qwen3Retriever
from qwen3_embedding_integrations import langchain as langchain_door
from qwen3_embedding_integrations import llama_index as llama_index_door
from tests.memory_store import MemoryStore

TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paris": ("The capital of France is Paris.", {"language": "en"}),
    "water": ("Water boils at 100 °C at sea level.", {"language": "en"}),
    "sale": (
        "民法典第七百二十六条\n出租人出卖租赁房屋的，承租人有优先购买权。",
        {"language": "zh"},
    ),
    "error": ("Error E1234-X: the cable is loose.", {"language": "en"}),
}


@pytest.fixture(scope="module")
def search(tiny: Qwen3Encoder) -> Iterator[Qwen3Retriever]:
    with KeywordIndex(":memory:") as keywords:
        keywords.write(list(TEXTS), [text for text, _ in TEXTS.values()])
        yield Qwen3Retriever(MemoryStore(tiny, TEXTS), tiny, keywords=keywords)


class TestLangChainsSuite(RetrieversIntegrationTests):
    """LangChain's own tests of a retriever."""

    @pytest.fixture(autouse=True)
    def _search(self, search: Qwen3Retriever) -> None:
        self.search = search

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return langchain_door.Qwen3SearchRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.search}

    @property
    def retriever_query_example(self) -> str:
        return "What does E1234X mean?"


async def test_langchain_gets_the_hits(search: Qwen3Retriever) -> None:
    """Documents carry the hits' ids, texts, facts and scores, sync and async; options count."""
    retriever = langchain_door.as_retriever(search, k=3, where={"language": "en"})
    hits = search.search("E-1234X", limit=3, where={"language": "en"})
    for documents in (retriever.invoke("E-1234X"), await retriever.ainvoke("E-1234X")):
        assert [document.id for document in documents] == [hit.id for hit in hits]
        assert documents[0].page_content == TEXTS["error"][0]
        assert documents[0].metadata == {"language": "en", "score": hits[0].score}
    chinese = retriever.invoke("民法典第726条", k=1, where={"language": "zh"})
    assert [document.id for document in chinese] == ["sale"]


def test_langchain_refuses_unknown_options(search: Qwen3Retriever) -> None:
    """A misspelt option fails, when the object is made and when it is asked."""
    with pytest.raises(ValueError, match="top_k"):
        langchain_door.Qwen3SearchRetriever(retriever=search, top_k=3)  # pyright: ignore
    with pytest.raises(ConfigError, match="unknown options: top_k"):
        langchain_door.as_retriever(search).invoke("a", top_k=3)


async def test_llama_index_gets_the_hits(search: Qwen3Retriever) -> None:
    """Nodes carry the hits' ids, texts, facts and scores, sync and async."""
    retriever = llama_index_door.as_retriever(
        search, similarity_top_k=2, where={"language": ["zh", "en"]}
    )
    assert isinstance(retriever, LlamaRetriever)
    hits = search.search("第726条", limit=2)
    for nodes in (retriever.retrieve("第726条"), await retriever.aretrieve("第726条")):
        assert [(node.node_id, node.score) for node in nodes] == [hit[:2] for hit in hits]
        assert nodes[0].text == TEXTS["sale"][0]
        assert nodes[0].metadata == {"language": "zh"}
