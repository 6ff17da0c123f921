"""Checkpoints to test with: random weights in any Qwen3 shape, the official tokenizer rebuilt."""

from __future__ import annotations

from qwen3_embedding_integrations.bench.random_model import (
    SHAPE_06B,
    official_tokenizer,
    random_tensors,
    write_checkpoint,
)
from qwen3_embedding_integrations.core.prompts import END_TOKEN as END

__all__ = [
    "END",
    "SHAPE_06B",
    "SHAPE_SMALL",
    "official_tokenizer",
    "random_tensors",
    "write_checkpoint",
]

SHAPE_SMALL = SHAPE_06B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
