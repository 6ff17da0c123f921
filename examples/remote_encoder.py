"""Vectors from a server: `EMBEDDING_URL=http://localhost:8000/v1 python remote_encoder.py`.

Any server with OpenAI's /v1/embeddings: SGLang, vLLM, TEI, Infinity, Ollama.
"""

import os

from qwen3_embedding_integrations import RemoteEncoder
from qwen3_embedding_integrations.langchain import Qwen3Embeddings


def main() -> None:
    url = os.environ["EMBEDDING_URL"]
    model = os.environ.get("EMBEDDING_MODEL", "Qwen/Qwen3-Embedding-0.6B")
    documents = ["The capital of France is Paris.", "Water boils at 100 degrees.", "出租人"]
    with RemoteEncoder(url, model=model) as encoder:
        scores = (
            encoder.encode_queries(["法国的首都是哪里？"]) @ encoder.encode_documents(documents).T
        )
        print(f"{encoder.dimensions} dimensions")
        print("->", documents[int(scores.argmax())])
        print(encoder.contract.revision)

    # Every door takes the address too; the key stays in the environment.
    embeddings = Qwen3Embeddings(model, base_url=url, dimensions=64)
    print(len(embeddings.embed_query("capital of France")), "dimensions")


if __name__ == "__main__":
    main()
