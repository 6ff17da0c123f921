"""Hybrid search: vectors, keywords and statute numbers over one Qdrant collection."""

from qwen3_embedding_integrations import (
    HybridStore,
    KeywordIndex,
    Qwen3Encoder,
    Qwen3Retriever,
    index_documents,
)
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.qdrant import Qwen3Collection

TEXTS = [
    "民法典第七百二十六条\n出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
    "民法典第一千零七十九条\n夫妻一方要求离婚的，可以向人民法院提起离婚诉讼。",
    "Error E1234-X\nThe printer has lost its connection; check the cable.",
]

with (
    Qwen3Encoder("tiny") as encoder,
    Qwen3Collection(":memory:", "articles", encoder=encoder) as articles,
    KeywordIndex(":memory:") as keywords,  # a path, to keep it
):
    store = HybridStore(articles.store, keywords)
    documents = [Document(text, source=f"{i}.txt", position=0) for i, text in enumerate(TEXTS)]
    index_documents(documents, encoder, store)
    retriever = Qwen3Retriever(store, encoder, keywords=keywords)
    for query in ("民法典第1079条", "what is e1234x?", "房东卖房，租客能优先买吗？"):
        print(query, "->", retriever.search(query, limit=1)[0].text.splitlines()[0])
