"""Writes a Qwen3 checkpoint as a GGUF file: what peers.py feeds llama.cpp with.

Run by path, `VENV/bin/python gguf_file.py MODEL_FOLDER FILE FORM`, in llama.cpp's environment,
which holds the package gguf and not this one. FORM is that of the matrices, bf16 or q8_0; norms
are float32, and there is no tokenizer.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

# GGUF's fields, and the keys of config.json that fill them.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "key_length": "head_dim",
    "value_length": "head_dim",
    "layer_norm_rms_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_freq_base": "rope_theta",
}


def write_gguf(model: Path, file: Path, form: str) -> None:
    """Write the checkpoint, bfloat16 safetensors, in this form."""
    gguf: Any = importlib.import_module("gguf")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "qwen3", use_temp_file=True)
    for field, key in FIELDS.items():
        getattr(writer, f"add_{field}")(config[key])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for path in sorted(model.glob("*.safetensors")):
        for key, tensor in gguf.utility.SafetensorsLocal(path).tensors.items():
            if tensor.dtype != "BF16":
                raise ValueError(f"{path}: {key} is {tensor.dtype}; only BF16 is read")
            # numpy has no bfloat16: it is the upper half of a float32.
            bits = tensor.mmap_bytes().view(np.uint16).astype(np.uint32) << 16
            array = bits.view(np.float32).reshape(tensor.shape)
            name = names.get_name("model." + key.removeprefix("model."), (".weight",))
            kind = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else form.upper()]
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
