"""safetensors to fused tensors: every layout of a checkpoint, and what is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen3_embedding_integrations.core.checkpoint import read_architecture
from qwen3_embedding_integrations.core.weights import Weights, load_weights
from qwen3_embedding_integrations.errors import ModelLoadError
from tests.checkpoints import SHAPE_SMALL, random_tensors

SHAPE = SHAPE_SMALL | {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
CPU = torch.device("cpu")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(SHAPE)


def write(folder: Path, tensors: dict[str, torch.Tensor], *, num_shards: int = 1) -> Path:
    """Write config.json and the tensors: one file, or shards with their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        names = sorted(tensors)[i::num_shards]  # a layer's tensors lie in different shards
        save_file({name: tensors[name] for name in names}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Weights:
    return load_weights(folder, read_architecture(folder), device=CPU, dtype=dtype)


def flat(weights: Weights) -> list[torch.Tensor]:
    linear = ("qkv", "o", "gate_up", "down")
    norms = ("input_norm", "post_attention_norm", "q_norm", "k_norm")
    tensors = [weights.embedding, weights.norm]
    for layer in weights.layers:
        tensors += [getattr(layer, name) for name in linear]
        tensors += [getattr(layer, name) for name in norms]
    return tensors


def assert_same(one: Weights, other: Weights) -> None:
    different = sum(not torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))
    assert different == 0, f"{different} of {len(flat(one))} tensors differ"


def test_projections_are_fused_in_order(tmp_path, tensors):
    """q, k, v stand below each other in one tensor, gate above up in another, all unchanged."""
    weights = load(write(tmp_path / "plain", tensors))
    for i, layer in enumerate(weights.layers):
        attention, mlp = f"layers.{i}.self_attn.", f"layers.{i}.mlp."
        q_k_v = [tensors[f"{attention}{x}_proj.weight"] for x in "qkv"]
        assert torch.equal(layer.qkv, torch.cat(q_k_v))
        gate_up = [tensors[f"{mlp}{x}_proj.weight"] for x in ("gate", "up")]
        assert torch.equal(layer.gate_up, torch.cat(gate_up))
        assert torch.equal(layer.o, tensors[attention + "o_proj.weight"])
        assert torch.equal(layer.down, tensors[mlp + "down_proj.weight"])
        assert torch.equal(layer.q_norm, tensors[attention + "q_norm.weight"])
        assert torch.equal(layer.k_norm, tensors[attention + "k_norm.weight"])


@pytest.mark.parametrize("num_shards", [2, 5])
def test_sharded_is_unsharded(tmp_path, tensors, num_shards):
    """Shards with an index give the weights of the single file."""
    sharded = load(write(tmp_path / "sharded", tensors, num_shards=num_shards))
    assert_same(sharded, load(write(tmp_path / "plain", tensors)))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_model_prefix_makes_no_difference(tmp_path, tensors, num_shards):
    """Tensors named model.… are those without the prefix; lm_head is not needed and not read."""
    prefixed = {"model." + name: tensor for name, tensor in tensors.items()}
    prefixed["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    loaded = load(write(tmp_path / "prefixed", prefixed, num_shards=num_shards))
    assert_same(loaded, load(write(tmp_path / "plain", tensors)))


def test_float32_files_are_converted(tmp_path, tensors):
    """A float32 checkpoint loads in bfloat16, and a bfloat16 one in float32, exactly."""
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    assert_same(load(write(tmp_path / "wide", wide)), load(write(tmp_path / "plain", tensors)))
    widened = load(tmp_path / "plain", torch.float32)
    expected = load(tmp_path / "wide", torch.float32)
    assert widened.layers[0].qkv.dtype == torch.float32
    assert torch.equal(widened.embedding.float(), expected.embedding)
    assert torch.equal(widened.layers[1].gate_up, expected.layers[1].gate_up)


@pytest.mark.parametrize(
    "name",
    [
        "embed_tokens.weight",
        "norm.weight",
        "layers.1.self_attn.k_proj.weight",
        "layers.0.self_attn.q_norm.weight",
        "layers.1.mlp.up_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, tensors, name):
    """A checkpoint without a tensor is refused with that tensor's name."""
    del tensors[name]
    with pytest.raises(ModelLoadError, match=f"lacks the tensor '{name}'"):
        load(write(tmp_path / "missing", tensors))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed_tokens.weight", (299, 32)),
        ("layers.0.self_attn.q_proj.weight", (256, 31)),
        ("layers.1.mlp.down_proj.weight", (48, 32)),
        ("layers.1.input_layernorm.weight", (1,)),
        ("layers.1.self_attn.k_norm.weight", (1, 64)),
    ],
)
def test_a_misshapen_tensor_is_named(tmp_path, tensors, name, shape):
    """A tensor of another shape, also one that would broadcast, is refused with both shapes."""
    expected = tuple(tensors[name].shape)
    tensors[name] = torch.zeros(shape, dtype=torch.bfloat16)
    with pytest.raises(ModelLoadError) as caught:
        load(write(tmp_path / "misshapen", tensors))
    for part in (name, str(shape), str(expected)):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["layers.0.self_attn.q_proj.lora_A.weight", "layers.0.self_attn.q_proj.lora_B.weight"],
        ["layers.0.self_attn.q_proj.bias"],
        ["layers.2.input_layernorm.weight"],
        ["score.weight"],
    ],
    ids=["lora", "bias", "one layer more", "classifier"],
)
def test_unknown_tensors_are_named(tmp_path, tensors, names):
    """Tensors that would be left out in silence are refused by name and count."""
    tensors |= {name: torch.zeros(4, 4, dtype=torch.bfloat16) for name in names}
    with pytest.raises(ModelLoadError, match=f"has {len(names)} tensors.*{names[0]}.*merged"):
        load(write(tmp_path / "unknown", tensors))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_quantized_tensors_are_refused(tmp_path, tensors, dtype):
    """Weights of eight bits without their scales are refused with their dtype."""
    name = "layers.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(ModelLoadError, match=f"{name} is {dtype}; give the unquantized"):
        load(write(tmp_path / "quantized", tensors))


@pytest.mark.parametrize("num_bytes", [0, 5, 100, -1, -1000])
def test_a_truncated_file_is_refused(tmp_path, tensors, num_bytes):
    """A safetensors file cut anywhere is refused with its path and size."""
    path = write(tmp_path / "truncated", tensors) / "model.safetensors"
    data = path.read_bytes()[:num_bytes]
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match="damaged or cut short") as caught:
        load(path.parent)
    assert str(path) in str(caught.value)
    assert f"{len(data):,} bytes" in str(caught.value)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path, tensors):
    """A text (such as a Git LFS pointer) under the file's name is refused."""
    path = write(tmp_path / "pointer", tensors) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0437e45c\nsize 119\n")
    with pytest.raises(ModelLoadError, match="damaged or cut short"):
        load(path.parent)


def test_a_missing_shard_is_named(tmp_path, tensors):
    """A shard the index names and the folder lacks is refused by name, with the count."""
    folder = write(tmp_path / "shards", tensors, num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks 1 of 3 weight files.*model-00002-of-00003"):
        load(folder)


def test_a_truncated_shard_is_refused(tmp_path, tensors):
    """One shard cut short is refused by its own path."""
    folder = write(tmp_path / "shards", tensors, num_shards=3)
    path = folder / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelLoadError, match=r"model-00003-of-00003.*damaged or cut short"):
        load(folder)


def test_a_damaged_index_is_refused(tmp_path, tensors):
    """An index that is no JSON is refused by its path."""
    folder = write(tmp_path / "shards", tensors, num_shards=2)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"index\.json is not valid JSON"):
        load(folder)
