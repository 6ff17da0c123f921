"""Documents per second on this processor, beside sentence-transformers, in one run.

    python -m benchmarks.cpu            # bfloat16, as the README quotes it
    python -m benchmarks.cpu --dtype float32 --texts 60 --rounds 3

Both sides get the same texts, the same random weights of the true 0.6B shape and the same
tokenizer, from strings to vectors; the rounds alternate; sentence-transformers counts by its better
batch size of 8 and 32. Tokens are the texts' own, without padding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from benchmarks.machine import CACHE, describe, save
from benchmarks.texts import lognormal_lengths, make_texts
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from tests.checkpoints import write_checkpoint

Side = Callable[[list[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    folder = CACHE / "random-0.6b"
    if not (folder / "model.safetensors").is_file():
        write_checkpoint(folder)
    lengths = lognormal_lengths(arguments.texts, median=48, sigma=0.8, cap=512)
    texts = make_texts(folder, lengths)

    encoder = Qwen3Encoder(EncoderConfig(model=str(folder), dtype=arguments.dtype))
    dtype = getattr(torch, arguments.dtype)
    peer = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    sides: dict[str, Side] = {"ours": encoder.encode_documents}
    for size in (8, 32):
        sides[f"sentence-transformers, batch {size}"] = lambda texts, size=size: peer.encode(
            texts, batch_size=size
        )

    vectors = {name: side(texts[:8]) for name, side in sides.items()}  # also the warm-up
    reference = vectors["sentence-transformers, batch 8"]
    cosine = float((vectors["ours"] * reference).sum(1).min())
    num_tokens = encoder.stats().tokens
    encoder.encode_documents(texts)
    num_tokens = encoder.stats().tokens - num_tokens

    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side(texts)
            rates[name].append(num_tokens / (time.perf_counter() - start))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    best_peer = max(value for name, value in medians.items() if name != "ours")
    result = {
        **describe(),
        "model": "random weights, Qwen3-Embedding-0.6B's shape and tokenizer",
        "dtype": arguments.dtype,
        "texts": len(texts),
        "tokens": num_tokens,
        "min_cosine_of_8_texts": cosine,
        "tokens_per_second": rates,
        "median_tokens_per_second": medians,
        "ratio_to_best_peer": medians["ours"] / best_peer,
    }
    table = Table(title=f"{len(texts)} texts, {num_tokens} tokens, {arguments.dtype}")
    for column in ("", "tokens/s", "all rounds", "against the best peer"):
        table.add_column(column)
    for name, value in medians.items():
        rounds = ", ".join(f"{rate:.0f}" for rate in rates[name])
        table.add_row(name, f"{value:.0f}", rounds, f"{value / best_peer:.2f}x")
    console = Console()
    console.print(table)
    console.print(save(f"cpu-{arguments.dtype}", result))


if __name__ == "__main__":
    main()
