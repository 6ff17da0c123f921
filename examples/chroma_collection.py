"""Chroma: set the embedding function once; open_collection checks how the vectors were made."""

import chromadb

from qwen3_embedding_integrations import ContractMismatchError
from qwen3_embedding_integrations.chroma import open_collection

client = chromadb.EphemeralClient()
articles = open_collection(client, "articles", model="tiny")
articles.add(
    ids=["paris", "tenant", "water"],
    documents=[
        "The capital of France is Paris.",
        "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
        "Water boils at 100 °C at sea level.",
    ],
)
found = articles.query(query_texts=["房东卖房，租客能优先买吗？"], n_results=1)
print(found["ids"], found["documents"])

try:
    open_collection(client, "articles", model="tiny", dimensions=64)
except ContractMismatchError as error:
    print(error)
