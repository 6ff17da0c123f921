"""Checkpoints to test with: random weights in any Qwen3 shape, the official tokenizer rebuilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qwen3_embedding_integrations.bench.random_model import (
    SHAPE_06B,
    official_tokenizer,
    plain_tokenizer,
    random_tensors,
    write_checkpoint,
)
from qwen3_embedding_integrations.core.prompts import END_TOKEN as END

__all__ = [
    "END",
    "SHAPE_06B",
    "SHAPE_SMALL",
    "TARGETS",
    "official_tokenizer",
    "plain_tokenizer",
    "random_tensors",
    "write_adapter",
    "write_checkpoint",
    "write_reranker",
]

TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

SHAPE_SMALL = SHAPE_06B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


def write_reranker(
    folder: Path, shape: dict[str, Any] = SHAPE_SMALL, *, is_tied: bool = True, seed: int = 0
) -> Path:
    """Write a folder laid out like the official rerankers, with random weights.

    That is: the plain tokenizer, names that begin with "model.", no modules.json and, where the
    output layer is not tied to the embedding (as in the 8B), lm_head.weight. The last norm is
    larger than random weights have it, so that scores lie well apart between 0 and 1.
    """
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(plain_tokenizer())
    files = {
        "config.json": shape | {"tie_word_embeddings": is_tied, "max_position_embeddings": 40960},
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": END,
            "model_max_length": 131072,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    tensors = {f"model.{name}": one for name, one in random_tensors(shape, seed=seed).items()}
    tensors["model.norm.weight"] *= 75 * shape["hidden_size"] ** -0.5
    if not is_tied:
        generator = torch.Generator().manual_seed(seed + 1)
        size = shape["vocab_size"], shape["hidden_size"]
        tensors["lm_head.weight"] = torch.randn(size, generator=generator).mul_(0.02).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_adapter(
    folder: Path, base: Path, *, seed: int = 0, is_causal: bool = False, **options: Any
) -> Path:
    """Let PEFT write a LoRA adapter of random numbers, none of them zero, for the model in `base`.

    `is_causal` adapts the model with its output layer: the tensors' names then say model.model.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if is_causal else AutoModel
    model = kind.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    options = {"r": 8, "lora_alpha": 8, "target_modules": TARGETS[:3]} | options
    adapted = get_peft_model(model, LoraConfig(**{"init_lora_weights": False, **options}))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder
