"""Reranking: what a search found, best first; in LangChain and in LlamaIndex."""

import sys

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from qwen3_embedding_integrations import RerankerConfig, langchain, llama_index, shared_reranker

query = "Which city is the capital of France?"
documents = [
    "Water boils at 100 °C at sea level.",
    "The capital of France is Paris.",
    "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
]
model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-Reranker-0.6B"

reranker = shared_reranker(RerankerConfig(model=model))  # the doors below use the same weights
for one in reranker.rerank(query, documents):
    print(f"{one.score:.3f}", one.index, one.document)

# Many queries in one call; what the documents of a query share is computed once.
print(reranker.score_pairs([(query, documents[1]), ("When does water boil?", documents[0])]))

compressor = langchain.Qwen3Rerank(model, top_n=1)  # for a ContextualCompressionRetriever
[best] = compressor.compress_documents([Document(text) for text in documents], query)
print("LangChain:", best.page_content, best.metadata["relevance_score"])

postprocessor = llama_index.Qwen3Rerank(model_name=model, top_n=1)  # for node_postprocessors
nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
[found] = postprocessor.postprocess_nodes(nodes, query_str=query)
print("LlamaIndex:", found.node.get_content(), found.score)
