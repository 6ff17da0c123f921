"""The oracle: transformers' Qwen3Model, one text at a time, with the official tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer


def reference_vectors(
    folder: Path, texts: Sequence[str], *, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Return the unit vector of each text's last token, (N, H) float32: no batch, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return vectors_of_ids(folder, [tokenizer(text)["input_ids"] for text in texts], dtype=dtype)


@torch.inference_mode()
def vectors_of_ids(
    folder: Path, sequences: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Return the same for token ids."""
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    rows = []
    for ids in sequences:
        input_ids = torch.tensor([list(map(int, ids))])
        hidden = model(input_ids=input_ids, use_cache=False).last_hidden_state  # (1, L, H)
        rows.append(F.normalize(hidden[0, -1].float(), dim=0).numpy())
    return np.stack(rows)


def largest_difference(ours: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference of two arrays of vectors, which must be finite."""
    assert ours.shape == expected.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - expected).max())
