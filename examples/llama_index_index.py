"""LlamaIndex: the embed model of an index."""

from llama_index.core import Document, VectorStoreIndex

from qwen3_embedding_integrations.llama_index import Qwen3Embedding

documents = [
    Document(text="The capital of France is Paris."),
    Document(text="出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。"),
    Document(text="Water boils at 100 °C at sea level."),
]
index = VectorStoreIndex.from_documents(documents, embed_model=Qwen3Embedding(model_name="tiny"))
retriever = index.as_retriever(similarity_top_k=1)
for question in ("Which city is the capital of France?", "房东卖房，租客能优先买吗？"):
    best = retriever.retrieve(question)[0]
    print(question, "->", best.node.get_content(), round(best.score or 0, 3))
