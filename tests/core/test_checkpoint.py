"""Which folders are a Qwen3 embedding model, and which two folders are the same one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from qwen3_embedding_integrations import ConfigError, EncoderConfig, ModelLoadError, Qwen3Encoder
from qwen3_embedding_integrations.core.checkpoint import (
    content_hash,
    locate_model,
    read_architecture,
    weight_files,
)
from qwen3_embedding_integrations.core.config import EngineConfig
from tests.checkpoints import SHAPE_06B, SHAPE_SMALL, random_tensors, write_checkpoint
from tests.oracle import largest_difference

WITHOUT_TOKENS = SHAPE_SMALL | {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
QUANTIZED = {"quant_method": "gptq", "bits": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a whole checkpoint, small enough to write for each test, to be spoiled by it."""
    return write_checkpoint(tmp_path / "checkpoint", WITHOUT_TOKENS)


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON object; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def hash_of(folder: Path) -> str:
    return content_hash(folder, read_architecture(folder))


def test_the_official_config_is_read(tmp_path):
    """config.json of the 0.6B gives the published numbers."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE_06B))
    architecture = read_architecture(tmp_path)
    assert (architecture.vocab_size, architecture.hidden_size) == (151669, 1024)
    assert (architecture.num_layers, architecture.intermediate_size) == (28, 3072)
    assert (architecture.num_heads, architecture.num_kv_heads) == (16, 8)
    assert (architecture.head_dim, architecture.max_positions) == (128, 32768)
    assert (architecture.rope_theta, architecture.rms_norm_eps) == (1e6, 1e-6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1000000, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        {"rope_parameters": {"rope_theta": 1000000.0}},
        {"rope_theta": 1000000, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 1000000, "rope_scaling": {"type": "default"}},
    ],
)
def test_both_spellings_of_rope(tmp_path, rope):
    """The rope_theta of transformers 4 and the rope_parameters of 5 are one model."""
    shape = {key: value for key, value in SHAPE_06B.items() if not key.startswith("rope")}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(json.dumps(shape | rope))
    (tmp_path / "config.json").write_text(json.dumps(SHAPE_06B))
    assert read_architecture(tmp_path / "new") == read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "model_type='llama'"),
        ({"model_type": "qwen2"}, "model_type='qwen2'"),
        ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'"),
        ({"model_type": None}, "model_type=None"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            "architecture Qwen3ForSequenceClassification",
        ),
        ({"quantization_config": QUANTIZED}, "quantized; give the unquantized checkpoint"),
        ({"rope_scaling": YARN}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": YARN | {"rope_theta": 1e6}}, "rope scaling 'yarn'"),
        ({"use_sliding_window": True, "sliding_window": 512}, "use_sliding_window=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_key_value_heads": None}, "lacks 'num_key_value_heads'"),
        ({"rope_theta": None}, "lacks 'rope_theta'"),
    ],
)
def test_another_architecture_is_refused(folder, changes, reason):
    """What is not a plain Qwen3 decoder is refused, with the folder and the reason."""
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelLoadError) as caught:
        read_architecture(folder)
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_config_is_refused(folder, text):
    """A config.json that holds no JSON object is refused by its path."""
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_architecture(folder)


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ({"pooling_mode_mean_tokens": True}, "another token"),
        ({"pooling_mode_cls_token": True, "pooling_mode_lasttoken": False}, "another token"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, "another token"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
    ],
)
def test_another_pooling_is_refused(folder, pooling, reason):
    """A folder that pools otherwise than by the last token is refused, with its way of pooling."""
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelLoadError, match=f"1_Pooling pools by {reason}"):
        read_architecture(folder)


@pytest.mark.parametrize(
    "pooling",
    [
        {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "include_prompt": True},
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode": "lasttoken", "embedding_dimension": 32},
    ],
)
def test_last_token_pooling_is_accepted_in_every_spelling(folder, pooling):
    """The layouts of sentence-transformers 2 to 6 for last-token pooling are all accepted."""
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert read_architecture(folder).hidden_size == 32


def test_a_module_after_the_model_is_refused(folder):
    """A Dense layer behind the pooling would change every vector: refused by name."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(
        2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadError, match=r"modules\.json has Dense"):
        read_architecture(folder)


def test_a_folder_of_the_model_alone_is_accepted(folder):
    """Without the sentence-transformers files the folder is still the model."""
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    assert read_architecture(folder).hidden_size == 32


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    """A folder that lacks a file is refused with the file's name, before anything runs."""
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")):
        Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float32"))


def test_pickled_weights_are_not_read(folder):
    """A folder with pytorch_model.bin alone is refused, with how to save it instead."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin.*safe_serialization=True"):
        weight_files(folder)


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path):
    """Ids beyond the embedding table are refused at load, not met in the middle of a forward.

    On CUDA a single one would end the process's device for every caller.
    """
    shape = WITHOUT_TOKENS | {"vocab_size": SHAPE_SMALL["vocab_size"] - 4}  # as in the 4B and 8B
    folder = write_checkpoint(tmp_path / "mixed", shape)
    with pytest.raises(ModelLoadError, match=r"tokenizer.*15166[589]"):
        Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float32")).close()


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c", "~/none/x/y"]
)
def test_a_missing_folder_is_named(model):
    """A path that is not there is refused by its name, without asking the network."""
    with pytest.raises(ModelLoadError) as caught:
        Qwen3Encoder(model)
    assert repr(model) in str(caught.value)
    assert "check the path" in str(caught.value)


def test_a_file_is_no_model(tmp_path):
    """A path to a file is refused like a missing folder."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelLoadError, match="no folder"):
        locate_model(EngineConfig(model=str(path)))


def test_a_revision_goes_with_a_hub_id_only(folder):
    """A revision with a folder or with "tiny" is an error: it would be dropped in silence."""
    for model in (str(folder), "tiny"):
        with pytest.raises(ConfigError, match="revision='v1' goes with a hub id"):
            locate_model(EngineConfig(model=model, revision="v1"))


def test_a_folder_is_found_from_home(folder, monkeypatch):
    """A path that begins with ~ is the folder in the user's home."""
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate_model(EngineConfig(model=f"~/{folder.name}")) == folder


def test_the_same_files_elsewhere_are_the_same_model(folder, tmp_path):
    """A copy under another name, with another card, has the same content hash."""
    copy = tmp_path / "elsewhere" / "my-model"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("another card")
    edit_json(copy / "config.json", transformers_version="5.23.0", torch_dtype="float32")
    assert hash_of(copy) == hash_of(folder)


def test_one_changed_weight_is_another_model(folder):
    """Changing a single number of one tensor changes the content hash."""
    before = hash_of(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert hash_of(folder) != before


def test_another_tokenizer_or_architecture_is_another_model(folder):
    """The tokenizer and the architecture's numbers belong to what the model is."""
    before = hash_of(folder)
    edit_json(folder / "config.json", rope_theta=10000)
    changed = hash_of(folder)
    edit_json(folder / "config.json", rope_theta=1000000)
    assert hash_of(folder) == before != changed
    edit_json(folder / "tokenizer.json", version="1.1")
    assert hash_of(folder) != before


def test_the_hubs_cache_has_the_folders_hash(folder, tmp_path):
    """Links to blobs, named by SHA-256 as the hub's cache names them, hash as the files do."""
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / ("ab" * 20), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.glob("*.*"):
        data = path.read_bytes()
        is_large = path.suffix == ".safetensors" or path.name == "tokenizer.json"
        name = hashlib.sha256(data).hexdigest() if is_large else hashlib.sha1(data).hexdigest()
        (blobs / name).write_bytes(data)
        (snapshot / path.name).symlink_to(Path("../../blobs") / name)
    assert hash_of(snapshot) == hash_of(folder)


def test_an_ordinary_link_is_hashed_by_content(folder, tmp_path):
    """A link to a file of any other name does not lend its name to the hash."""
    linked = tmp_path / "linked"
    shutil.copytree(folder, linked)
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert hash_of(linked) == hash_of(folder)


def test_a_checkpoint_saved_by_transformers_5_is_the_same_model(tmp_path):
    """save_pretrained of transformers 5 writes another config; the vectors stay the same."""
    from transformers import AutoModel

    shape = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    before = write_checkpoint(tmp_path / "before", shape)
    after = tmp_path / "after"
    model = AutoModel.from_pretrained(before, dtype="bfloat16")
    model.save_pretrained(after)
    shutil.copy(before / "tokenizer.json", after)
    assert "rope_parameters" in json.loads((after / "config.json").read_text())
    vectors = []
    for folder in (before, after):
        with Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float32")) as encoder:
            vectors.append(encoder.encode_documents(["one text", "另一个文本"]))
    difference = largest_difference(*vectors)
    assert difference == 0, f"max difference {difference:.2e}"


def test_the_contract_refuses_files_that_changed_since_loading(folder, tmp_path):
    """An encoder whose files were replaced after it read them does not claim their hash."""
    shape = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    folder = write_checkpoint(tmp_path / "replaced", shape)
    with Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float32")) as encoder:
        from safetensors.torch import save_file

        save_file(random_tensors(shape, seed=1), folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelLoadError, match="have changed since the model was loaded"):
            _ = encoder.contract
