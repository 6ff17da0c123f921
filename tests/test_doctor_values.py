"""What the doctor compares with: its plain forward, recorded and published values, its texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from qwen3_embedding_integrations import shared_encoder
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.doctor.golden import compare, find_golden, precision_of
from qwen3_embedding_integrations.doctor.texts import DOCUMENTS, QUERY_STRINGS, long_texts
from qwen3_embedding_integrations.doctor.weights import TokenizedText, hidden_states
from tests.backends import TINY
from tests.checkpoints import official_tokenizer
from tests.oracle import largest_difference, reference_vectors


def test_the_reference_is_transformers(small_checkpoint: Path) -> None:
    """The doctor's own plain forward gives Qwen3Model's vectors, in two shapes."""
    texts = [*DOCUMENTS, *QUERY_STRINGS]
    for folder in (TINY, small_checkpoint):
        ids = [TokenizedText(tuple(map(int, row))) for row in Tokenizer(folder).encode(texts)]
        ours = torch.stack([h[-1] for h in hidden_states(folder, ids)])
        ours = torch.nn.functional.normalize(ours, dim=1).numpy()
        difference = largest_difference(ours, reference_vectors(folder, texts))
        assert difference < 2e-6, f"{folder}: {difference:.1e}"


def test_recorded_values_are_transformers() -> None:
    """The values shipped for tiny are those of Qwen3Model, to the digits they are written with."""
    golden = find_golden("tiny")
    assert golden is not None
    assert golden.content_hash == shared_encoder("tiny").contract.revision
    texts = [one["text"] for one in golden.vectors]
    recorded = np.array([one["values"] for one in golden.vectors])
    difference = largest_difference(recorded, reference_vectors(TINY, texts))
    assert difference < 1e-6, f"{difference:.1e}"
    deviation = compare(golden, lambda some: reference_vectors(TINY, some).astype(np.float64))
    assert precision_of(deviation) == "float32"


def test_published_values_have_sources_and_names(tmp_path: Path) -> None:
    """Every value names its source; token ids are the official tokenizer's; names are found."""
    (tmp_path / "tokenizer.json").write_bytes(official_tokenizer())
    tokenizer = Tokenizer(tmp_path)
    for size, width in (("0.6B", 1024), ("4B", 2560), ("8B", 4096)):
        golden = find_golden(f"Qwen/Qwen3-Embedding-{size}")
        assert golden is not None
        assert golden.width == width
        assert {*golden.texts} >= {name for *pair, _ in golden.pairs for name in pair}
        for one in golden.vectors:
            assert one["source"] in golden.sources
            if "token_ids" in one:
                assert tokenizer.encode([one["text"]])[0].tolist() == one["token_ids"]
    for name in ("qwen3-embedding:0.6b", "Qwen3-Embedding-0.6B-GGUF", "x/qwen3-embedding-0.6b"):
        assert find_golden(name) is find_golden("Qwen/Qwen3-Embedding-0.6B")
    for name in ("Qwen3-Embedding-0.6B-legal", "qwen3-reranker-0.6b", "bge-m3", ""):
        assert find_golden(name) is None


def test_published_values_agree_with_each_other() -> None:
    """A backend that answers with the published values is right, and one number away is not."""
    golden = find_golden("Qwen/Qwen3-Embedding-0.6B")
    assert golden is not None
    whole = [one for one in golden.vectors if len(one["values"]) == golden.width]
    known = {one["text"]: np.array(one["values"]) for one in whole}
    only = dataclasses.replace(golden, texts={}, pairs=[], vectors=whole)
    deviation = compare(only, lambda texts: np.stack([known[text] for text in texts]))
    assert precision_of(deviation) == "float32"
    deviation = compare(only, lambda texts: np.stack([known[text][::-1] for text in texts]))
    assert precision_of(deviation) is None


def test_long_texts_are_as_long_as_they_say(tmp_path: Path) -> None:
    """A word is a token, with tiny's tokenizer and with the official one, but for a few."""
    (tmp_path / "tokenizer.json").write_bytes(official_tokenizer())
    for folder in (TINY, tmp_path):
        for num_words in (18, 100, 2000):
            for row in Tokenizer(folder).encode(list(long_texts(num_words))):
                assert 1 <= len(row) - num_words <= 6
