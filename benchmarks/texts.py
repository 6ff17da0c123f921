"""Unique texts of given token counts, Chinese and English, made from the demo's articles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from qwen3_embedding_integrations.demo import load_texts


def make_texts(folder: Path, lengths: list[int], *, seed: int = 0) -> list[str]:
    """Return one text per length (in tokens, about), no two with a common beginning."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(seed)
    articles = [text.text for text in load_texts()]
    texts: list[str] = []
    for length in lengths:
        ids: list[int] = []
        while len(ids) < length:
            article = articles[rng.integers(len(articles))]
            start = int(rng.integers(max(1, len(article) - 20)))
            ids += tokenizer.encode(article[start:], add_special_tokens=False).ids
        texts.append(tokenizer.decode(ids[:length]))
    return texts
