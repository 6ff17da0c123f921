"""200 texts of 1 to 2,000 tokens at the true 0.6B shape, each against transformers' Qwen3Model.

    python -m benchmarks.parity                # about half an hour on two cores, 12 GB of memory

The oracle reads one text at a time, without padding, all layers whole. Ours are encoded packed,
alone, in another order, and behind the instruction with and without its reused keys and values.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, Qwen3Model

from benchmarks.texts import make_texts
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.bench.random_model import write_checkpoint
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, format_queries

HERE = Path(__file__).parent
CODE = "def f(x: int) -> int:\n    return x ** 2  # 平方 🚀\n"
ODD = ["a", "🚀", "。", "\n\n", "👩‍👩‍👧‍👦 e\u0301 ﬁ", CODE, CODE * 20, "ыы", "123456", "…" * 50]


@torch.inference_mode()
def oracle(folder: str, texts: list[str], dtype: torch.dtype) -> np.ndarray:
    """Return transformers' own vectors, one forward a text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3Model.from_pretrained(folder, dtype=dtype).eval()
    rows = []
    for text in track(texts, f"transformers, {dtype}"):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        hidden = model(ids, use_cache=False).last_hidden_state[0, -1].float()
        rows.append(torch.nn.functional.normalize(hidden, dim=0))
    return torch.stack(rows).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--bfloat16-texts", type=int, default=60)
    arguments = parser.parse_args()
    folder = HERE / ".cache" / "random-0.6b"
    if not (folder / "model.safetensors").is_file():
        write_checkpoint(folder)
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.uniform(0, np.log(2000), arguments.texts - len(ODD))).astype(int) + 1
    texts = [*ODD, *make_texts(folder, lengths.tolist(), seed=1)]
    order = rng.permutation(len(texts))
    queries = texts[:: max(1, len(texts) // 40)]
    model = str(folder)

    expected = oracle(model, texts, torch.float32)
    differences: dict[str, float] = {}

    def compare(name: str, vectors: np.ndarray, reference: np.ndarray) -> None:
        differences[name] = float(np.abs(vectors - reference).max())

    with Qwen3Encoder(EncoderConfig(model=model, dtype="float32", on_empty="embed")) as encoder:
        compare("packed", encoder.encode_documents(texts), expected)
        alone = [encoder.encode_documents([text])[0] for text in track(texts, "alone")]
        compare("alone", np.stack(alone), expected)
        shuffled = encoder.encode_documents([texts[i] for i in order])
        compare("another order", shuffled, expected[order])
        whole = encoder.encode_documents(format_queries(queries, WEB_SEARCH))
        reused = encoder.encode_queries(queries)
        compare(
            "queries, instruction read",
            whole,
            oracle(model, format_queries(queries, WEB_SEARCH), torch.float32),
        )
        compare("queries, instruction reused", reused, whole)
        num_tokens = encoder.stats().tokens

    some = texts[: arguments.bfloat16_texts]
    theirs = oracle(model, some, torch.bfloat16)
    with Qwen3Encoder(EncoderConfig(model=model, dtype="bfloat16", on_empty="embed")) as encoder:
        ours = encoder.encode_documents(some)

    def error(vectors: np.ndarray) -> float:
        return float(np.linalg.norm(vectors - expected[: len(some)], axis=1).mean())

    result = {
        **describe(shlex.join(["python", "-m", "benchmarks.parity", *sys.argv[1:]])),
        "transformers": transformers.__version__,
        "texts": len(texts),
        "tokens_encoded": num_tokens,
        "max_abs_difference_float32": differences,
        "allowed": 2e-5,
        "bfloat16_mean_error": {"ours": error(ours), "transformers": error(theirs)},
        "bfloat16_error_ratio": error(ours) / error(theirs),
        "bfloat16_allowed_ratio": 1.2,
    }
    console = Console()
    console.print(result)
    path = HERE / "results" / "parity-0.6b.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(path)
    if max(differences.values()) > 2e-5 or result["bfloat16_error_ratio"] > 1.2:
        raise SystemExit("parity is broken")


if __name__ == "__main__":
    main()
