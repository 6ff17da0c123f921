"""LoRA adapters, folded in at load: PEFT's own vectors, a contract of their own, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    ModelLoadError,
    Qwen3Encoder,
    Qwen3Reranker,
    RemoteEncoder,
    RerankerConfig,
    diagnose,
    merge_lora,
    quantize_model,
    shared_encoder,
)
from qwen3_embedding_integrations.core.linear import has_packed_products
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH
from qwen3_embedding_integrations.server.command import served_models
from qwen3_embedding_integrations.stores import merge as merge_options
from tests.checkpoints import SHAPE_SMALL, TARGETS, write_adapter, write_checkpoint
from tests.oracle import largest_difference, reference_scores, reference_vectors

ATOL = 1e-5
SHAPE = SHAPE_SMALL | {"num_hidden_layers": 3}
TEXTS = [
    "The capital of China is Beijing.",
    "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。",
    "x",
    " ".join(f"word {i}" for i in range(120)),
]
PATTERNS = {
    "target_modules": TARGETS,
    "rank_pattern": {"q_proj": 3, r"layers\.[12]\.mlp\.down_proj": 5, "0.mlp.down_proj": 2},
    "alpha_pattern": {"self_attn.v_proj": 40, "mlp.*": 3},
}
needs_int8 = pytest.mark.skipif(not has_packed_products(), reason="int8 needs x86 and oneDNN")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three random layers; do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", SHAPE)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter of all projections; do not change it."""
    return write_adapter(tmp_path_factory.mktemp("lora") / "lora", base, target_modules=TARGETS)


@pytest.fixture(scope="module")
def expected(base: Path, adapter: Path) -> np.ndarray:
    return reference_vectors(base, TEXTS, lora=adapter)


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of base and adapter, in the base's bfloat16."""
    return merge_lora(str(base), str(adapter), tmp_path_factory.mktemp("merged") / "deep" / "out")


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Path:
    """Return a copy of the adapter, to be changed."""
    return Path(shutil.copytree(adapter, tmp_path / "changed"))


def encode(model: Path | str, lora: Path | None = None, **options: Any) -> np.ndarray:
    config = EncoderConfig(
        model=str(model), lora=None if lora is None else str(lora), **{"dtype": "float32"} | options
    )
    with Qwen3Encoder(config) as encoder:
        return encoder.encode_documents(TEXTS)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def name_of(module: str, side: str) -> str:
    return f"base_model.model.layers.{module}.lora_{side}.weight"


# The vectors


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 4, "lora_alpha": 7, "target_modules": "all-linear"},
        PATTERNS,
        PATTERNS | {"use_rslora": True, "is_causal": True, "layers_to_transform": [0, 2]},
        {"target_modules": r".*\.1\.mlp\.(up|down)_proj", "r": 1},
        {"target_modules": ["mlp.up_proj", "layers.2.self_attn.o_proj"]},
    ],
    ids=["qkv", "rslora", "patterns", "causal", "regex", "names"],
)
def test_a_folded_adapter_gives_pefts_vectors(base, tmp_path, options):
    """In float32, vectors equal those of PEFT's unmerged model to 1e-5, and not the base's."""
    lora = write_adapter(tmp_path / "lora", base, seed=3, **options)
    expected = reference_vectors(base, TEXTS, lora=lora)
    assert largest_difference(encode(base, lora), expected) <= ATOL
    assert largest_difference(encode(base), expected) > 100 * ATOL


def test_queries_that_share_their_instruction_are_pefts(base, adapter):
    """With the instruction's keys and values reused, queries are still PEFT's, call after call."""
    prompts = [f"Instruct: {WEB_SEARCH}\nQuery:{text}" for text in TEXTS]
    expected = reference_vectors(base, prompts, lora=adapter)
    config = EncoderConfig(model=str(base), lora=str(adapter), dtype="float32")
    with Qwen3Encoder(config) as encoder:
        for _ in range(3):
            assert largest_difference(encoder.encode_queries(TEXTS), expected) <= ATOL
        alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    assert largest_difference(alone, expected) <= ATOL


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}], ids=str)
def test_rounding_comes_after_the_sum(base, adapter, merged, expected, tmp_path, options):
    """In bfloat16 and int8, vectors are PEFT's but for the rounding of a model merged before it."""
    if "quantization" in options and not has_packed_products():
        pytest.skip("int8 needs x86 and oneDNN")
    ours = encode(base, adapter, **options)
    off = 1 - (ours * expected).sum(axis=1)
    assert off.max() < 0.01, off
    source = merged
    if "quantization" in options:
        source = merge_lora(str(base), str(adapter), tmp_path / "float32", dtype="float32")
    assert np.array_equal(ours, encode(source, **options))


def test_a_reranker_takes_an_adapter(reranker_checkpoint, tmp_path):
    """Scores of a reranker with an adapter are PEFT's to 1e-4, and not the base's."""
    lora = write_adapter(tmp_path / "lora", reranker_checkpoint, is_causal=True, lora_alpha=4)
    pairs = [(TEXTS[0], text) for text in TEXTS]
    expected = reference_scores(reranker_checkpoint, pairs, WEB_SEARCH, lora=lora)
    config = RerankerConfig(model=str(reranker_checkpoint), lora=str(lora), dtype="float32")
    with Qwen3Reranker(config) as reranker:
        assert np.abs(reranker.score(TEXTS[0], TEXTS) - expected).max() <= 1e-4
    plain = reference_scores(reranker_checkpoint, pairs, WEB_SEARCH)
    assert np.abs(plain - expected).max() > 0.01


# The contract


def test_the_contract_names_the_adapter_by_its_content(base, adapter, changed):
    """The same updates in another folder are the same adapter; another number is another."""
    loaded = [
        shared_encoder(EncoderConfig(model=str(base), lora=lora and str(lora), dtype="float32"))
        for lora in (None, adapter, changed)
    ]
    plain, ours, copied = [one.contract for one in loaded]
    assert ours.lora is not None
    assert len(ours.lora) == 16
    assert (plain.lora, plain.revision) == (None, ours.revision)
    assert copied == ours
    with pytest.raises(ContractMismatchError, match=f"lora: stored None, yours '{ours.lora}'"):
        ours.require_match(plain, index="the index")
    for one in loaded:
        one.close()
    edit(changed, lora_alpha=8.5)
    config = EncoderConfig(model=str(base), lora=str(changed), dtype="float32")
    with Qwen3Encoder(config) as other:
        assert other.contract.fingerprint not in {ours.fingerprint, plain.fingerprint}


def test_a_remote_encoder_records_the_adapter_it_is_told_of(base, adapter):
    """With a local contract's revision and lora, a server's encoder opens the local one's index."""
    config = EncoderConfig(model=str(base), lora=str(adapter), dtype="float32")
    with Qwen3Encoder(config) as encoder:
        local = encoder.contract
    options = {"revision": local.revision, "dimensions": local.dimensions}
    with RemoteEncoder("http://127.0.0.1:9/v1", model="m", lora=local.lora, **options) as remote:
        assert remote.contract.fingerprint == local.fingerprint
    with RemoteEncoder("http://127.0.0.1:9/v1", model="m", **options) as remote:
        assert remote.contract.fingerprint != local.fingerprint


def test_two_adapters_of_one_model_stay_apart(base, adapter, tmp_path, monkeypatch):
    """shared_encoder keeps weights per adapter; one folder is one adapter however it is written."""
    other = write_adapter(tmp_path / "other", base, seed=9)
    config = EncoderConfig(model=str(base), lora=str(adapter), dtype="float32")
    first = shared_encoder(config)
    second = shared_encoder(EncoderConfig(model=str(base), lora=str(other), dtype="float32"))
    try:
        vectors = first.encode_documents(TEXTS), second.encode_documents(TEXTS)
        assert largest_difference(*vectors) > 100 * ATOL
        assert largest_difference(vectors[1], reference_vectors(base, TEXTS, lora=other)) <= ATOL
        monkeypatch.chdir(adapter.parent)
        relative = EncoderConfig(model=str(base), lora=adapter.name, dtype="float32")
        assert shared_encoder(relative) is first
    finally:
        first.close()
        second.close()


def test_another_model_for_a_collection_drops_the_old_ones_adapter():
    """An adapter kept beside an index goes with its model: a merged one is not adapted twice."""
    stored = EncoderConfig(model="tiny", lora="owner/adapter", dimensions=64)
    assert merge_options(stored, {"dtype": "float32"}).lora == "owner/adapter"
    assert merge_options(stored, {"model": "owner/merged"}).lora is None
    assert merge_options(stored, {"model": "tiny", "lora": "b"}).lora == "b"


def test_the_doctor_does_not_measure_an_adapter_by_its_base(tmp_path):
    """An encoder with an adapter is not called wrong; against the merged folder it is right."""
    tiny = Path(str(shared_encoder("tiny")._loaded.folder))
    lora = write_adapter(tmp_path / "lora", tiny, lora_alpha=1)
    merged = merge_lora("tiny", str(lora), tmp_path / "merged", dtype="float32")
    config = EncoderConfig(model="tiny", lora=str(lora), dtype="float32")
    with Qwen3Encoder(config) as encoder:
        alone = diagnose(encoder, max_tokens=64)
        assert (alone.known, alone.faults) == ("nothing", ())
        beside = diagnose(encoder, reference=str(merged), max_tokens=64)
        assert (beside.known, beside.faults) == ("weights", ())


# Merged and quantized


def test_a_merged_folder_is_a_plain_model(base, adapter, tmp_path):
    """A folder merged in float32 has PEFT's vectors here, in transformers, sentence-transformers.

    It comes of two shards with an index, as the larger models do.
    """
    from sentence_transformers import SentenceTransformer

    shards = Path(shutil.copytree(base, tmp_path / "shards"))
    split_in_two(shards)
    expected = reference_vectors(base, TEXTS, lora=adapter)
    folder = merge_lora(str(shards), str(adapter), tmp_path / "merged", dtype="float32")
    assert largest_difference(encode(folder), expected) <= ATOL
    assert largest_difference(reference_vectors(folder, TEXTS), expected) <= ATOL
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert next(theirs.parameters()).dtype == torch.float32
    assert largest_difference(theirs.encode(TEXTS), expected) <= 2 * ATOL
    assert {path.name for path in folder.iterdir()} >= {path.name for path in shards.iterdir()}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = [t.nbytes for path in folder.glob("*.safetensors") for t in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def split_in_two(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for place, (name, tensor) in enumerate(tensors.items()):
        shards[list(shards)[place % 2]][name] = tensor
    for name, part in shards.items():
        save_file(part, folder / name, {"format": "pt"})
    names = {name: file for file, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_merged_folder_keeps_dtype_and_has_its_own_contract(base, adapter, merged):
    """Names and dtypes are the base's, untouched tensors bit for bit; the revision is another."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    contracts = []
    for model, lora in ((base, None), (base, str(adapter)), (merged, None)):
        with Qwen3Encoder(EncoderConfig(model=str(model), lora=lora)) as encoder:
            contracts.append(encoder.contract)
    assert contracts[2].lora is None
    assert len({one.revision for one in contracts}) == 2
    assert len({one.fingerprint for one in contracts}) == 3


def test_merge_writes_all_or_nothing(base, adapter, changed, tmp_path):
    """An existing folder is refused untouched, and a failed merge leaves no part of one."""
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine exists already"):
        merge_lora(str(base), str(adapter), tmp_path / "mine")
    edit(changed, use_dora=True)
    with pytest.raises(ModelLoadError, match="use_dora=True"):
        merge_lora(str(base), str(changed), tmp_path / "new")
    damaged = Path(shutil.copytree(base, tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    del tensors["layers.2.mlp.up_proj.weight"]
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks the tensor 'layers\.2\.mlp\.up_proj"):
        merge_lora(str(damaged), str(adapter), tmp_path / "new")
    with pytest.raises(ConfigError, match="dtype is 'int4'"):
        merge_lora(str(base), str(adapter), tmp_path / "new", dtype="int4")  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"changed", "damaged", "mine"}
    assert not list((tmp_path / "mine").iterdir())


@needs_int8
def test_a_quantized_folder_keeps_its_adapter(base, adapter, tmp_path):
    """quantize with lora gives the vectors and contract of lora with int8; more is refused."""
    folder = quantize_model(str(base), tmp_path / "int8", lora=str(adapter)).folder
    contracts = []
    vectors = []
    for config in (
        EncoderConfig(model=str(folder)),
        EncoderConfig(model=str(base), lora=str(adapter), quantization="int8"),
    ):
        with Qwen3Encoder(config) as encoder:
            vectors.append(encoder.encode_documents(TEXTS))
            contracts.append(encoder.contract)
    assert np.array_equal(*vectors)
    assert contracts[0].fingerprint == contracts[1].fingerprint
    with pytest.raises(ConfigError, match="int8 already") as caught:
        encode(folder, adapter)
    assert f"quantize {base}" in str(caught.value)
    assert "--lora" in str(caught.value)


# Refusals


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"use_dora": True}, ["use_dora=True"]),
        ({"modules_to_save": ["norm"]}, ["modules_to_save=['norm']"]),
        ({"bias": "lora_only"}, ["bias='lora_only'", 'bias="none"']),
        ({"peft_type": "IA3"}, ["peft_type='IA3'"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa'"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out=True"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices=[1]"]),
        ({"some_new_option": 3}, ["some_new_option=3"]),
        ({"r": 4}, ["layers.0.mlp.down_proj", "'A': (8, 512)", "'A': (4, 512)"]),
        ({"rank_pattern": {"k_proj": 2}}, ["0.self_attn.k_proj", "(8, 256)", "(2, 256)"]),
        ({"r": "8"}, ["r='8'"]),
        ({"lora_alpha": None}, ["lora_alpha=None"]),
    ],
    ids=str,
)
def test_what_cannot_be_folded_in_is_refused_by_its_field(base, changed, changes, parts):
    """A field whose meaning is more than plain LoRA is a ModelLoadError with name and value."""
    edit(changed, **changes)
    with pytest.raises(ModelLoadError) as caught:
        encode(base, changed)
    for part in [*parts, str(changed)]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(name_of("1.mlp.up_proj", "A")), ["layers.1.mlp.up_proj", "not of {'A'"]),
        (lambda t: t.pop(name_of("1.mlp.up_proj", "B")), ["lacks ['layers.1.mlp.up_proj']"]),
        (
            lambda t: [t.pop(name_of("1.mlp.up_proj", side)) for side in "AB"],
            ["incomplete", "lacks ['layers.1.mlp.up_proj']"],
        ),
        (
            lambda t: t.update({name_of("7.mlp.up_proj", "A"): torch.ones(8, 256)}),
            ["layers.7.mlp.up_proj.lora_A", "none of its 3 layers"],
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(8, 256)}),
            ["lm_head.lora_A"],
        ),
        (
            lambda t: t.update({"base_model.model.embed_tokens.lora_embedding_A": torch.ones(8)}),
            ["embed_tokens.lora_embedding_A"],
        ),
        (
            lambda t: t.update(
                {name_of("0.mlp.up_proj", "A").replace("l.l", "l.model.l"): torch.ones(8, 256)}
            ),
            ["model.model.layers.0.mlp.up_proj.lora_A", "twice"],
        ),
        (lambda t: t[name_of("0.mlp.up_proj", "B")].fill_(torch.nan), ["0.mlp.up_proj holds NaN"]),
        (lambda t: t.clear(), ["incomplete"]),
    ],
    ids=["no A", "no B", "a pair", "a layer", "head", "embedding", "twice", "nan", "nothing"],
)
def test_tensors_without_a_place_are_refused(base, changed, change, parts):
    """Nothing in an adapter is ignored, and nothing it promises may be missing: tensors by name."""
    edit_tensors(changed, change)
    with pytest.raises(ModelLoadError) as caught:
        encode(base, changed)
    for part in parts:
        assert part in str(caught.value)


def test_an_adapter_of_another_model_is_refused(base, adapter, changed, tmp_path):
    """Shapes of another model are named with both numbers; another official model by its name."""
    with pytest.raises(ModelLoadError, match=r"for tiny: ") as caught:
        encode("tiny", adapter)
    assert f"trained on {base}" in str(caught.value)
    edit(changed, base_model_name_or_path="Qwen/Qwen3-Embedding-4B")
    encode(base, changed)  # a folder's own name says nothing
    named = tmp_path / "Qwen3-Embedding-0.6B"
    named.symlink_to(base)
    with pytest.raises(ModelLoadError, match=r"qwen3-embedding-4b is not qwen3-embedding-0\.6b"):
        merge_lora(str(named), str(changed), tmp_path / "out")
    edit(changed, base_model_name_or_path="qwen/qwen3-embedding-0.6b")
    merge_lora(str(named), str(changed), tmp_path / "out")


def test_what_is_no_adapter_is_refused(base, changed, tmp_path):
    """A missing folder, a pickled or damaged file, and a whole model are named as such."""
    with pytest.raises(ModelLoadError, match="no folder 'not/a/folder' here"):
        encode(base, Path("not/a/folder"))
    with pytest.raises(ModelLoadError, match=r"no adapter_config\.json.*given as model="):
        encode(base, base)
    with pytest.raises(ModelLoadError, match=r"owner/adapter' \(revision v2\) is not in the cache"):
        Qwen3Encoder(EncoderConfig(model=str(base), lora="owner/adapter@v2"))
    file = changed / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="damaged or cut short"):
        encode(base, changed)
    file.rename(changed / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"no adapter_model\.safetensors.*never read"):
        encode(base, changed)


def test_serve_refuses_one_adapter_for_two_models():
    """--lora of serve goes with one model: with two, nobody could say which it was trained on."""
    options = {"lora": "owner/adapter"}
    with pytest.raises(ConfigError, match="--lora goes with one model, not 2; merge"):
        served_models(["a=tiny"], ["b=owner/reranker"], None, options)
    assert [one.name for one in served_models(["a=tiny"], None, None, options)] == ["a"]
