"""The demo: real texts in two languages, found through all four doors with the tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

from .core.config import TINY
from .sharing import shared_encoder

Search = Callable[[str], str]  # a question to the id of the best document


class Text(NamedTuple):
    """One text of the demo."""

    id: str
    title: str
    text: str

    @property
    def document(self) -> str:
        """What is embedded: the title says what the text may leave out."""
        return f"{self.title}\n{self.text}"


class Answer(NamedTuple):
    """What one door found for one question."""

    question: str
    found: Text
    is_right: bool


class DoorResult(NamedTuple):
    """How one door did."""

    door: str
    num_documents: int
    index_s: float
    answers: list[Answer]


def load_texts() -> list[Text]:
    """Return the articles of the Civil Code and the help articles."""
    lines: list[str] = []
    for name in ("civil_code_zh.jsonl", "help_en.jsonl"):
        lines += _read(name).splitlines()
    return [Text(**json.loads(line)) for line in lines]


def load_questions() -> list[dict[str, str]]:
    """Return the questions, each with the id of the text that answers it."""
    return json.loads(_read("questions.json"))


def run_door(door: str, texts: list[Text]) -> DoorResult:
    """Index all texts through one door and answer the questions through it."""
    shared_encoder(TINY)  # loaded before the clock starts: one copy serves all doors
    start = time.perf_counter()
    search = DOORS[door](texts)
    index_s = time.perf_counter() - start
    by_id = {text.id: text for text in texts}
    answers: list[Answer] = []
    for question in load_questions():
        found = search(question["question"])
        answers.append(Answer(question["question"], by_id[found], found == question["expected"]))
    return DoorResult(door, len(texts), index_s, answers)


def _through_chroma(texts: list[Text]) -> Search:
    from .chroma import connect, open_collection

    client = connect(":memory:")
    collection = open_collection(client, "demo", model=TINY)
    ids = [text.id for text in texts]
    collection.upsert(ids=ids, documents=[text.document for text in texts])
    return lambda question: collection.query(query_texts=[question], n_results=1)["ids"][0][0]


def _through_langchain(texts: list[Text]) -> Search:
    from langchain_core.vectorstores import InMemoryVectorStore

    from .langchain import Qwen3Embeddings

    store = InMemoryVectorStore(Qwen3Embeddings(TINY))
    store.add_texts([text.document for text in texts], ids=[text.id for text in texts])
    return lambda question: store.similarity_search(question, k=1)[0].id or ""


def _through_llama_index(texts: list[Text]) -> Search:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from .llama_index import Qwen3Embedding

    nodes = [TextNode(id_=text.id, text=text.document) for text in texts]
    index = VectorStoreIndex(nodes, embed_model=Qwen3Embedding(model_name=TINY))
    retriever = index.as_retriever(similarity_top_k=1)
    return lambda question: retriever.retrieve(question)[0].node.node_id


def _through_qdrant(texts: list[Text]) -> Search:
    from .qdrant import Qwen3Collection

    collection = Qwen3Collection(":memory:", "demo", model=TINY)
    payloads: list[dict[str, Any]] = [{"id": text.id} for text in texts]
    ids = [text.id for text in texts]
    collection.upsert([text.document for text in texts], ids=ids, payloads=payloads)
    return lambda question: (collection.query(question, limit=1)[0].payload or {})["id"]


DOORS: dict[str, Callable[[list[Text]], Search]] = {
    "Chroma": _through_chroma,
    "LangChain": _through_langchain,
    "LlamaIndex": _through_llama_index,
    "Qdrant": _through_qdrant,
}


def _read(name: str) -> str:
    return (files("qwen3_embedding_integrations") / "demo_texts" / name).read_text(encoding="utf-8")
