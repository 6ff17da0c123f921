"""Reindex: another width (or model) beside the old collection, checked, swapped, undone.

The same on the command line: `qwen3-embedding reindex --dimensions 64`, and `--back-to NAME`.
"""

import tempfile

from chromadb.api import ClientAPI

from qwen3_embedding_integrations import EncoderConfig, index_documents, shared_encoder
from qwen3_embedding_integrations.chroma import ChromaStore, connect, open_collection
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.stores import make_current, reindex

QUESTION = "房东要卖房，我作为租客能优先买吗？"


def search(client: ClientAPI, dimensions: int | None) -> None:
    articles = open_collection(client, "articles", model="tiny", dimensions=dimensions)
    found = articles.query(query_texts=[QUESTION], n_results=1, include=["metadatas", "embeddings"])
    print(articles.name, found["embeddings"][0].shape, found["metadatas"][0][0]["source"])


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    client = connect(folder)
    encoder = shared_encoder(EncoderConfig(model="tiny"))
    store = ChromaStore(client, open_collection(client, "articles", model="tiny"))
    documents = (Document(text.document, source=text.id, position=0) for text in load_texts())
    index_documents(documents, encoder, store)
    search(client, None)

    report = reindex("chroma", folder, "articles", dimensions=64)  # cut: no model is asked
    print(
        f"{report.rows} rows, {report.encoded} encoded, {report.agreement:.0%} of neighbours kept"
    )
    search(client, 64)

    make_current("chroma", folder, "articles", report.old)
    search(client, None)
