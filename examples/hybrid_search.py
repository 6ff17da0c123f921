"""Hybrid search: vectors, keywords and statute numbers over one Qdrant collection."""

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from qwen3_embedding_integrations import Hit, KeywordIndex, Qwen3Encoder, Qwen3Retriever
from qwen3_embedding_integrations.qdrant import Qwen3Collection

ARTICLES = [
    "民法典第七百二十六条\n出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
    "民法典第一千零七十九条\n夫妻一方要求离婚的，可以向人民法院提起离婚诉讼。",
    "Error E1234-X\nThe printer has lost its connection; check the cable.",
]


class Store:
    """What Qwen3Retriever asks of a store; `where` is left out here."""

    def __init__(self, collection: Qwen3Collection) -> None:
        self.collection = collection

    def nearest(self, vector: Any, *, limit: int, where: Any = None) -> list[Hit]:
        points = self.collection.nearest(vector, limit=limit)
        return [self._hit(point, point.score) for point in points]

    def fetch(self, ids: Sequence[str], *, where: Any = None) -> list[Hit]:
        found = self.collection.client.retrieve("articles", ids)
        hits = {str(point.id): self._hit(point, 0.0) for point in found}
        return [hits[id_] for id_ in ids if id_ in hits]

    def _hit(self, point: models.ScoredPoint | models.Record, score: float) -> Hit:
        facts = dict(point.payload or {})
        return Hit(str(point.id), score, facts.pop("document"), facts)


with (
    Qwen3Encoder("tiny") as encoder,
    Qwen3Collection(":memory:", "articles", encoder=encoder) as articles,
    KeywordIndex(":memory:") as keywords,  # a path, to keep it
):
    ids = articles.upsert(ARTICLES)
    keywords.write([str(id_) for id_ in ids], ARTICLES)
    retriever = Qwen3Retriever(Store(articles), encoder, keywords=keywords)
    for query in ("民法典第1079条", "what is e1234x?", "房东卖房，租客能优先买吗？"):
        print(query, "->", retriever.search(query, limit=1)[0].text.splitlines()[0])
