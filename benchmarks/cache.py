"""What a hit costs: one text, and 512 in one call, from each store, at the 0.6B's width.

Run: python -m benchmarks.cache [REDIS_URL]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwen3_embedding_integrations import CachedEncoder, DiskStore, MemoryStore, RedisStore
from qwen3_embedding_integrations.bench.random_model import SHAPE_06B, write_checkpoint
from qwen3_embedding_integrations.encoder import Qwen3Encoder

ROUNDS = 15
TEXTS = [f"text {i} of about the length that a user's question has" for i in range(512)]


def least_s(call: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # As wide as the 0.6B, and one layer deep: what is measured is not the encoder.
        shape = SHAPE_06B | {"num_hidden_layers": 1, "intermediate_size": 128}
        encoder = Qwen3Encoder(str(write_checkpoint(Path(folder) / "model", shape)))
        stores = [MemoryStore(), DiskStore(Path(folder) / "vectors.cache")]
        stores += [RedisStore(url) for url in sys.argv[1:]]
        for store in stores:
            cached = CachedEncoder(encoder, store)
            cached.encode_queries(TEXTS)
            one_s = least_s(lambda cached=cached: cached.encode_queries(TEXTS[:1]))
            all_s = least_s(lambda cached=cached: cached.encode_queries(TEXTS))
            assert cached.stats().encoded == len(TEXTS)
            name = store.name.split()[0]
            print(f"{name:8} one text {one_s * 1e6:4.0f} µs, 512 texts {512 / all_s:9,.0f}/s")
            store.close()
        encoder.close()


if __name__ == "__main__":
    main()
