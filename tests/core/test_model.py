"""The packed forward against transformers' Qwen3Model, one text at a time."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen3_embedding_integrations import EncoderConfig, NonFiniteOutputError, Qwen3Encoder
from qwen3_embedding_integrations.core import kernels
from qwen3_embedding_integrations.core.attention import behind_prefix, choose_attention
from qwen3_embedding_integrations.core.checkpoint import read_architecture
from qwen3_embedding_integrations.core.dense import Dense
from qwen3_embedding_integrations.core.heads import embedding_head
from qwen3_embedding_integrations.core.memory import KEPT_PREFIX_TOKENS
from qwen3_embedding_integrations.core.model import MAX_PREFIXES, Qwen3Model
from qwen3_embedding_integrations.core.packing import PackedBatch
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, format_queries, query_prompt
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.core.weights import load_weights
from tests.checkpoints import SHAPE_06B, SHAPE_SMALL, random_tensors, write_checkpoint
from tests.oracle import largest_difference, reference_vectors
from tests.texts import mixed_text, unicode_text

ATOL = 2e-5  # on unit vectors, float32
CPU = torch.device("cpu")
MINI = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def texts_of_all_lengths(num_texts: int, *, most_chars: int) -> list[str]:
    """Return texts from one token to thousands, Chinese, English, code and emoji."""
    rng = random.Random(7)
    spread = np.geomspace(1, most_chars, num_texts - 6).astype(int)
    texts = [mixed_text(rng, int(num_chars)) for num_chars in spread]
    texts += ["x", "中", "🚀", "same", "same", unicode_text(rng) or "a"]
    rng.shuffle(texts)
    return texts


def assert_close(ours: np.ndarray, expected: np.ndarray, what: str) -> None:
    difference = largest_difference(ours, expected)
    assert difference <= ATOL, f"{what}: max difference {difference:.2e}, allowed {ATOL:.0e}"
    norms = np.linalg.norm(ours, axis=1)
    assert np.abs(norms - 1).max() < 1e-5, f"{what}: norms {norms.min()} to {norms.max()}"


def native_model(
    folder: Path, dtype: torch.dtype, operations: kernels.Operations = kernels
) -> Qwen3Model:
    """Return the model computing in `dtype`, as it does on a device that is fast in it."""
    architecture = read_architecture(folder)
    dense = Dense(architecture, dtype, operations)
    weights = load_weights(
        folder,
        architecture,
        device=CPU,
        dtype=dtype,
        pack=lambda _, layers: dense.pack(layers),
    )
    attention, _ = choose_attention("auto", CPU, dtype)
    residual = torch.float32 if dtype == torch.float16 else dtype
    return Qwen3Model(
        weights,
        architecture,
        attention=behind_prefix(attention),
        dense=dense,
        device=CPU,
        dtype=residual,
    )


def native_vectors(folder: Path, texts: list[str], dtype: torch.dtype) -> np.ndarray:
    """Return the vectors of a forward computed in `dtype` throughout, all texts packed."""
    batch = PackedBatch.pack(Tokenizer(folder).encode(texts))
    return embedding_head(native_model(folder, dtype))(batch)()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_of_all_lengths(64, most_chars=5200)


@pytest.fixture(scope="module")
def expected(small_checkpoint: Path, texts: list[str]) -> np.ndarray:
    return reference_vectors(small_checkpoint, texts)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("mini") / "checkpoint", MINI)


def test_the_texts_are_what_they_should_be(small_checkpoint, texts):
    """The set below holds 64 texts, from one token of text to about two thousand."""
    lengths = sorted(len(ids) - 1 for ids in Tokenizer(small_checkpoint).encode(texts))
    assert len(lengths) == 64
    assert lengths[0] == 1
    assert 1500 <= lengths[-1] <= 2048, lengths[-5:]
    assert sum(length >= 200 for length in lengths) >= 8


def test_packed_equals_transformers(small, texts, expected):
    """Texts packed into shared forwards get the vectors Qwen3Model gives each alone."""
    assert_close(small.encode_documents(texts), expected, "packed")


def test_alone_equals_transformers(small, texts, expected):
    """A text encoded by itself gets the vector Qwen3Model gives it."""
    alone = np.concatenate([small.encode_documents([text]) for text in texts])
    assert_close(alone, expected, "alone")


def test_any_order_equals_transformers(small, texts, expected):
    """Shuffled and reversed calls return the same vectors, each in its own place."""
    rng = random.Random(8)
    for order in ([*range(len(texts))][::-1], rng.sample(range(len(texts)), len(texts))):
        vectors = small.encode_documents([texts[i] for i in order])
        assert_close(vectors, expected[order], "another order")


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 1024])
def test_any_budget_equals_transformers(small_checkpoint, texts, expected, max_batch_tokens):
    """However many tokens share a forward, the vectors are the same."""
    some = slice(0, 24)
    config = EncoderConfig(
        model=str(small_checkpoint), dtype="float32", max_batch_tokens=max_batch_tokens
    )
    with Qwen3Encoder(config) as encoder:
        vectors = encoder.encode_documents(texts[some])
    assert_close(vectors, expected[some], f"max_batch_tokens={max_batch_tokens}")


@pytest.mark.parametrize(
    "instruction",
    [WEB_SEARCH, "给定一个网络搜索查询，检索相关段落。", "Ends in a newline\n", "x", "word " * 700],
    ids=["default", "chinese", "newline", "x", "longer than the prefix kept"],
)
def test_the_reused_prefix_equals_no_prefix(small, small_checkpoint, instruction):
    """A query behind a kept instruction gets the vector of the whole string read anew."""
    rng = random.Random(9)
    queries = [mixed_text(rng, rng.randint(1, 120)) for _ in range(20)] + [
        "::new",
        '"quoted"',
        "中",
    ]
    whole = format_queries(queries, instruction)
    vectors = small.encode_queries(queries, instruction=instruction)
    again = small.encode_queries(queries[::-1], instruction=instruction)[::-1]
    assert_close(vectors, small.encode_documents(whole), "no prefix")
    assert_close(vectors, reference_vectors(small_checkpoint, whole), "Qwen3Model")
    assert_close(again, vectors, "the prefix used a second time")


def test_more_instructions_than_are_kept(small):
    """Instructions that were dropped from the store and come back still give the same vectors."""
    instructions = [f"Find texts about subject {i}" for i in range(MAX_PREFIXES + 8)]
    queries = ["gravity", "合同 的 成立"]
    whole = [small.encode_documents(format_queries(queries, one)) for one in instructions]
    for _ in range(2):
        for instruction, expected in zip(instructions, whole, strict=True):
            vectors = small.encode_queries(queries, instruction=instruction)
            assert_close(vectors, expected, instruction)


def test_long_prefixes_do_not_fill_the_memory(mini):
    """What is kept of all prefixes together is bounded in tokens; the last one always is."""
    model, rng = native_model(mini, torch.float32), np.random.default_rng(13)
    prefixes = [tuple(rng.integers(0, 1000, n).tolist()) for n in (600, 900, 1000, 400, 3000, 5)]
    own = np.arange(7, dtype=np.int32)
    for prefix in prefixes:
        before = model.computed.num_tokens
        together = model(PackedBatch.pack([own], prefix))
        assert model.computed.num_tokens - before == len(prefix)
        whole = model(PackedBatch.pack([np.array([*prefix, *own], np.int32)]))
        assert (together - whole).abs().max() < 1e-4
        lengths = [len(ids) for ids in model._prefixes]
        assert lengths[-1] == len(prefix)
        assert sum(lengths) <= KEPT_PREFIX_TOKENS or len(lengths) == 1, lengths
    assert [len(ids) for ids in model._prefixes] == [5]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_few_layers_equal_transformers(tmp_path, num_layers):
    """The pruned layer is right where it is also the first: one layer, with and without prefix."""
    folder = write_checkpoint(tmp_path / "few", MINI | {"num_hidden_layers": num_layers})
    rng = random.Random(10)
    queries = [mixed_text(rng, n) for n in (1, 9, 40, 400)]
    config = EncoderConfig(model=str(folder), dtype="float32")
    with Qwen3Encoder(config) as encoder:
        vectors = encoder.encode_queries(queries)
    whole = format_queries(queries, WEB_SEARCH)
    assert_close(vectors, reference_vectors(folder, whole), f"{num_layers} layers")


def test_pruned_equals_unpruned(mini):
    """Dropping the other tokens in the last layer changes nothing: an unpruned forward agrees.

    The unpruned forward is the same one, over a model whose last layer is followed by a layer that
    adds nothing (its output projections are zero): there the true last layer runs for every token.
    """
    rng = random.Random(11)
    ids = Tokenizer(mini).encode([mixed_text(rng, n) for n in (1, 5, 5, 80, 300)])
    prompt = Tokenizer(mini).prompt(query_prompt(WEB_SEARCH))
    pruned = native_model(mini, torch.float32)
    weights = pruned._weights
    zero = load_weights(mini, pruned.architecture, device=CPU, dtype=torch.float32).layers[-1]
    zero.o.zero_()
    zero.down.zero_()
    longer = type(weights)(weights.embedding, (*weights.layers, zero), weights.norm)
    attention, _ = choose_attention("auto", CPU, torch.float32)
    unpruned = Qwen3Model(
        longer,
        pruned.architecture,
        attention=behind_prefix(attention),
        dense=Dense(pruned.architecture, torch.float32),
        device=CPU,
        dtype=torch.float32,
    )
    for prefix_ids in ((), prompt.prefix_ids):
        batch = PackedBatch.pack(ids, prefix_ids)
        ours, expected = (embedding_head(model)(batch)() for model in (pruned, unpruned))
        assert_close(ours, expected, f"pruned, prefix of {len(prefix_ids)}")


def test_the_parts_of_an_accelerator_equal_transformers(small_checkpoint, texts, expected):
    """The fused forward, its operations as plain functions, gives Qwen3Model's vectors."""
    vectors = native_vectors(small_checkpoint, texts, torch.float32)
    assert_close(vectors, expected, "plain operations")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a card nothing is interpreted")
def test_the_fused_kernels_equal_transformers(mini):
    """With its operations fused by Triton, in its interpreter, the forward is still Qwen3Model's.

    Behind an instruction's keys and values as well as without.
    """
    triton_kernels = pytest.importorskip("qwen3_embedding_integrations.core.triton_kernels")
    rng = random.Random(12)
    queries = [mixed_text(rng, n) for n in (1, 9, 40)]
    tokenizer = Tokenizer(mini)
    prompt = tokenizer.prompt(query_prompt(WEB_SEARCH))
    model = embedding_head(native_model(mini, torch.float32, triton_kernels))
    alone = model(PackedBatch.pack(tokenizer.encode(queries)))()
    assert_close(alone, reference_vectors(mini, queries), "no instruction")
    tails = tokenizer.encode([prompt.tail + query for query in queries])
    behind = model(PackedBatch.pack(tails, prompt.prefix_ids))()
    whole = format_queries(queries, WEB_SEARCH)
    assert_close(behind, reference_vectors(mini, whole), "behind an instruction")


def test_float16_holds_what_exceeds_float16(mini, tmp_path):
    """Where an MLP's sums exceed float16, and transformers' float16 is NaN, ours is float32's."""
    folder = tmp_path / "massive"
    shutil.copytree(mini, folder)
    tensors = random_tensors(MINI)
    for i in range(MINI["num_hidden_layers"]):
        tensors[f"layers.{i}.mlp.up_proj.weight"] *= 2e5
        tensors[f"layers.{i}.mlp.down_proj.weight"] *= 100
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    rng = random.Random(13)
    some = [mixed_text(rng, n) for n in (1, 9, 40, 200)]
    theirs = reference_vectors(folder, some, dtype=torch.float16)
    assert not np.isfinite(theirs).all(), "float16 would have done without care"
    vectors = native_vectors(folder, some, torch.float16)
    difference = largest_difference(vectors, reference_vectors(folder, some))
    assert difference <= 5e-3, f"max difference {difference:.2e}"


def test_bfloat16_is_as_near_as_transformers(small_checkpoint, texts, expected):
    """bfloat16's mean error against float32 is at most 1.2 times transformers' own."""
    some = slice(0, 40)
    theirs = reference_vectors(small_checkpoint, texts[some], dtype=torch.bfloat16)
    allowed = 1.2 * np.linalg.norm(theirs - expected[some], axis=1).mean()
    config = EncoderConfig(model=str(small_checkpoint), dtype="bfloat16")
    with Qwen3Encoder(config) as encoder:
        ours = {"on this processor": encoder.encode_documents(texts[some])}
    ours["in bfloat16 throughout"] = native_vectors(small_checkpoint, texts[some], torch.bfloat16)
    for name, vectors in ours.items():
        error = np.linalg.norm(vectors - expected[some], axis=1).mean()
        assert error <= allowed, f"{name}: mean error {error:.2e}, allowed {allowed:.2e}"


def test_bfloat16_packed_equals_alone(small_checkpoint, texts):
    """In bfloat16 a text's vector hardly depends on what it shares a forward with."""
    model = embedding_head(native_model(small_checkpoint, torch.bfloat16))
    ids = Tokenizer(small_checkpoint).encode(texts[:24])
    packed = model(PackedBatch.pack(ids))()
    alone = np.concatenate([model(PackedBatch.pack([one]))() for one in ids])
    worst = float((packed * alone).sum(1).min())
    assert worst > 0.9995, f"worst cosine {worst:.6f}"


def test_float16_is_finite_and_near(small_checkpoint, texts, expected):
    """float16 gives finite vectors, nearer to float32 than bfloat16's rounding."""
    some = slice(0, 40)
    config = EncoderConfig(model=str(small_checkpoint), dtype="float16")
    with Qwen3Encoder(config) as encoder:
        ours = {"on this processor": encoder.encode_documents(texts[some])}
    ours["in float16 throughout"] = native_vectors(small_checkpoint, texts[some], torch.float16)
    for name, vectors in ours.items():
        difference = largest_difference(vectors, expected[some])
        assert difference <= 2e-3, f"{name}: max difference {difference:.2e}"


def broken_checkpoint(folder: Path, name: str, value: float) -> Path:
    """Write a checkpoint one of whose tensors is all `value`."""
    write_checkpoint(folder, MINI)
    tensors = random_tensors(MINI)
    tensors[name].fill_(value)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_not_a_number_is_an_error(tmp_path):
    """NaN in the weights reaches no caller as a vector: the error says how many and what to do."""
    folder = broken_checkpoint(tmp_path / "nan", "layers.1.mlp.down_proj.weight", float("nan"))
    with (
        Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float32")) as encoder,
        pytest.raises(NonFiniteOutputError, match=r"2 of 2 vectors.*weights are damaged"),
    ):
        encoder.encode_documents(["one", "two"])


def test_float16_overflow_names_the_dtype_to_use(tmp_path):
    """A forward that overflows float16 says to use bfloat16 or float32."""
    folder = broken_checkpoint(tmp_path / "huge", "layers.1.post_attention_layernorm.weight", 6e4)
    batch = PackedBatch.pack(Tokenizer(folder).encode(["one"]))
    wait = embedding_head(native_model(folder, torch.float16))(batch)
    with pytest.raises(NonFiniteOutputError, match='float16; use dtype="bfloat16", or "float32"'):
        wait()


def test_weights_too_large_for_float16_name_the_dtype_to_use(tmp_path):
    """dtype="float16" with weights beyond its range says to use bfloat16 or float32."""
    folder = broken_checkpoint(tmp_path / "too large", "layers.1.mlp.down_proj.weight", 1e5)
    with (
        Qwen3Encoder(EncoderConfig(model=str(folder), dtype="float16")) as encoder,
        pytest.raises(NonFiniteOutputError, match='float16; use dtype="bfloat16", or "float32"'),
    ):
        encoder.encode_documents(["one"])


def test_true_shape(tmp_path_factory):
    """At the 0.6B model's true shape, random weights, every vector is Qwen3Model's."""
    folder = write_checkpoint(tmp_path_factory.mktemp("shape_06b") / "checkpoint", SHAPE_06B)
    try:
        rng = random.Random(12)
        texts = ["x", "中"] + [mixed_text(rng, n) for n in (5, 20, 20, 60, 120, 250, 400, 800)]
        queries = ["What is the capital of China?", "合同在什么情况下无效？"]
        expected = reference_vectors(folder, texts + format_queries(queries, WEB_SEARCH))
        gc.collect()
        config = EncoderConfig(model=str(folder), dtype="float32")
        with Qwen3Encoder(config) as encoder:
            vectors = encoder.encode_documents(texts)
            assert_close(vectors, expected[: len(texts)], "documents")
            assert_close(encoder.encode_queries(queries), expected[len(texts) :], "queries")
            assert_close(encoder.encode_documents(texts[-1:]), vectors[-1:], "alone")
    finally:
        shutil.rmtree(folder)
        gc.collect()


@pytest.mark.weights
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_values(dtype):
    """The real 0.6B weights give the similarities and values that were published with them."""
    golden = json.loads((Path(__file__).parent.parent / "data/golden_values.json").read_text())
    with Qwen3Encoder(EncoderConfig(model=os.environ["QWEN3_WEIGHTS"], dtype=dtype)) as encoder:
        card, pairs = golden["card"], golden["pairs"]
        scores = (
            encoder.encode_queries(card["queries"]) @ encoder.encode_documents(card["documents"]).T
        )
        difference = np.abs(scores - np.array(card["scores"])).max()
        assert difference <= card["atol"][dtype], f"model card: {difference:.2e}"
        names = list(pairs["texts"])
        vectors = dict(
            zip(names, encoder.encode_documents(list(pairs["texts"].values())), strict=True)
        )
        for left, right, score in pairs["pairs"]:
            difference = abs(float(vectors[left] @ vectors[right]) - score)
            assert difference <= pairs["atol"][dtype], f"{left}, {right}: {difference:.2e}"
        for one in golden["first_dimensions"]:
            vector = encoder.encode_documents([one["text"]])[0, : len(one["values"])]
            difference = np.abs(vector - np.array(one["values"])).max()
            assert difference <= one["atol"][dtype], f"{one['text']!r}: {difference:.2e}"


def test_the_choice_of_attention_is_said_once(mini, caplog):
    """Loading says at INFO which attention runs and why."""
    with caplog.at_level(logging.INFO, "qwen3_embedding_integrations"):
        Qwen3Encoder(EncoderConfig(model=str(mini), dtype="float32")).close()
    lines = [record.getMessage() for record in caplog.records if "attention" in record.message]
    assert len(lines) == 1
    assert "sdpa (cpu, float32)" in lines[0] or torch.cuda.is_available()
