"""The oracle: transformers' Qwen3, one text at a time, with the official tokenizer.

Rerankers as their card shows it: batches padded on the left.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

GOLDEN = json.loads((Path(__file__).parent / "data/golden_reranker.json").read_text())
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def reference_vectors(
    folder: Path,
    texts: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    lora: Path | None = None,
) -> np.ndarray:
    """Return the unit vector of each text's last token, (N, H) float32: no batch, no padding.

    With `lora` PEFT computes the adapter beside the model, not merged into it.
    """
    tokenizer = transformers_tokenizer(folder)
    sequences = [tokenizer(text)["input_ids"] for text in texts]
    return vectors_of_ids(folder, sequences, dtype=dtype, lora=lora)


@torch.inference_mode()
def vectors_of_ids(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    *,
    dtype: torch.dtype = torch.float32,
    lora: Path | None = None,
) -> np.ndarray:
    """Return the same for token ids."""
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    if lora is not None:
        model = _adapted(model, lora)
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


def _adapted(model: Any, lora: Path) -> Any:
    """Return PEFT's model; of an adapter trained with the output layer, the part before that."""
    with safe_open(lora / "adapter_model.safetensors", "pt") as file:
        is_causal = next(iter(file.keys())).startswith("base_model.model.model.")
    if not is_causal or hasattr(model, "lm_head"):
        return PeftModel.from_pretrained(model, lora).eval()
    whole = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=model.dtype)
    return PeftModel.from_pretrained(whole, lora).eval().base_model.model.model


def transformers_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a folder, padding on the left."""
    return _tokenizer_of(*((folder / name).read_bytes() for name in TOKENIZER_FILES))


@lru_cache(maxsize=4)  # a second and 40 MB each, and nearly all folders have the official one
def _tokenizer_of(*contents: bytes) -> Any:
    with TemporaryDirectory() as folder:
        for name, content in zip(TOKENIZER_FILES, contents, strict=True):
            Path(folder, name).write_bytes(content)
        return AutoTokenizer.from_pretrained(folder, padding_side="left")


def reranker_ids(
    folder: Path, pairs: Sequence[tuple[str, str]], instruction: str, *, max_length: int = 8192
) -> list[list[int]]:
    """Return the ids a reranker reads, as its card makes them: the middle is cut, the ends not."""
    tokenizer = transformers_tokenizer(folder)
    prefix, suffix = (
        tokenizer.encode(GOLDEN[name], add_special_tokens=False) for name in ("prefix", "suffix")
    )
    bodies = [GOLDEN["body"].format(instruction=instruction, query=q, doc=d) for q, d in pairs]
    room = max_length - len(prefix) - len(suffix)
    middles = tokenizer(bodies, truncation="longest_first", max_length=room)["input_ids"]
    return [prefix + ids + suffix for ids in middles]


@torch.inference_mode()
def reference_scores(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    instruction: str,
    *,
    max_length: int = 8192,
    batch_size: int = 8,
    lora: Path | None = None,
) -> np.ndarray:
    """Return each (query, document)'s score, (N,) float32, in batches padded on the left."""
    tokenizer = transformers_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if lora is not None:
        model = _adapted(model, lora)
    answers = tokenizer.convert_tokens_to_ids(["no", "yes"])
    sequences = reranker_ids(folder, pairs, instruction, max_length=max_length)
    scores: list[float] = []
    for start in range(0, len(sequences), batch_size):
        batch = {"input_ids": sequences[start : start + batch_size]}
        inputs = tokenizer.pad(batch, padding=True, return_tensors="pt")
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1, answers]
        scores += torch.log_softmax(logits, dim=1)[:, 1].exp().tolist()
    return np.array(scores, np.float32)
