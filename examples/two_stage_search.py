"""Two stages: short vectors find candidates, the whole ones (or a reranker) put them in order."""

import chromadb

from qwen3_embedding_integrations import (
    EncoderConfig,
    Qwen3Retriever,
    index_documents,
    shared_encoder,
)
from qwen3_embedding_integrations.chroma import ChromaStore, open_collection
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.documents import Document

short = shared_encoder(EncoderConfig(model="tiny", dimensions=32))  # 128 bytes a row in the store
whole = shared_encoder(EncoderConfig(model="tiny"))  # 256 dimensions, of the same weights

client = chromadb.EphemeralClient()
store = ChromaStore(client, open_collection(client, "short", model="tiny", dimensions=32))
documents = [Document(text.document, source=text.id, position=0) for text in load_texts()]
index_documents(documents, short, store)

one_stage = Qwen3Retriever(store, short)
# With real weights: reranker=Qwen3Reranker("Qwen/Qwen3-Reranker-0.6B"), or a bigger encoder.
two_stages = Qwen3Retriever(store, short, reranker=whole, candidates=50)

for question in (
    "女方怀孕了，男方还能提离婚吗？",
    "Can I get my money back?",
    "自己手写的遗嘱有效吗？",
):
    print(question)
    for name, retriever in (("one stage ", one_stage), ("two stages", two_stages)):
        hits = retriever.search(question, limit=3)
        print(f"  {name}", *(hit.facts["source"] for hit in hits))
