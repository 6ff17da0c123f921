"""Qdrant: create, upsert, query; a repeated upsert changes nothing."""

from qwen3_embedding_integrations.qdrant import Qwen3Collection

# A URL such as "http://localhost:6333", a folder, a QdrantClient, or ":memory:".
with Qwen3Collection(":memory:", "articles", model="tiny") as articles:
    documents = [
        "The capital of France is Paris.",
        "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
        "Water boils at 100 °C at sea level.",
    ]
    payloads = [{"language": "en"}, {"language": "zh"}, {"language": "en"}]
    articles.upsert(documents, payloads=payloads)
    articles.upsert(documents, payloads=payloads)
    print(len(articles), "points")
    for point in articles.query("房东卖房，租客能优先买吗？", limit=1):
        print(round(point.score, 3), point.payload)
