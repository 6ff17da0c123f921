"""A cache: what was encoded once is answered from memory or disk, also by the next process."""

import tempfile
from pathlib import Path

from qwen3_embedding_integrations import CachedEncoder, DiskStore, MemoryStore, Qwen3Encoder
from qwen3_embedding_integrations.langchain import Qwen3Embeddings

folder = tempfile.TemporaryDirectory()  # yours would be a folder that stays
stores = MemoryStore(max_bytes=64 * 2**20), DiskStore(Path(folder.name) / "vectors.cache")
# For several machines, add RedisStore("redis://localhost:6379/0", ttl_s=7 * 24 * 3600).
with folder, CachedEncoder(Qwen3Encoder("tiny"), *stores) as encoder:
    documents = ["The capital of France is Paris.", "Water boils at 100 °C at sea level."]
    encoder.encode_documents(documents)
    encoder.encode_documents([*documents, "出租人出卖租赁房屋的，承租人享有优先购买的权利。"])

    embeddings = Qwen3Embeddings(encoder=encoder)  # every door takes it
    embeddings.embed_query("The capital of France is Paris.")  # another role: no hit

    stats = encoder.stats()
    print(f"{stats.texts} texts, {stats.hits} hits, {stats.encoded} encoded")
    for store in stats.stores:
        print(store.name.split()[0], store.stored_bytes, "bytes")
