"""fp8 weights: what they keep of the vectors on a processor's twin, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qwen3_embedding_integrations
from qwen3_embedding_integrations import ConfigError, EncoderConfig, Qwen3Encoder, quantize_model
from qwen3_embedding_integrations.core.attention import behind_prefix, choose_attention
from qwen3_embedding_integrations.core.checkpoint import read_architecture
from qwen3_embedding_integrations.core.config import EngineConfig
from qwen3_embedding_integrations.core.dense import Dense
from qwen3_embedding_integrations.core.heads import Head, embedding_head
from qwen3_embedding_integrations.core.linear import (
    E4M3,
    QuantizedWeight,
    fp8_obstacle,
    has_packed_products,
    product,
    quantize_weight_fp8,
    to_e4m3,
)
from qwen3_embedding_integrations.core.loading import resolve
from qwen3_embedding_integrations.core.model import Qwen3Model
from qwen3_embedding_integrations.core.packing import PackedBatch
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.core.quantization import PROJECTIONS, Quantizer
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.core.weights import load_weights
from qwen3_embedding_integrations.demo import load_texts
from tests.core.test_quantization import plant_outliers

CPU = torch.device("cpu")
TINY = Path(qwen3_embedding_integrations.__file__).parent / "tiny"
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs to lack a card")


def fp8_model(folder: Path) -> tuple[Head, tuple, dict[str, float]]:
    """Return the model as a card runs it, its layers, and the errors of what stayed bfloat16."""
    architecture = read_architecture(folder)
    dense = Dense(architecture, torch.bfloat16)
    quantizer = Quantizer(architecture, Tokenizer(folder), "fp8")
    weights = load_weights(
        folder,
        architecture,
        device=CPU,
        dtype=torch.float32,
        pack=lambda embedding, layers: dense.pack(quantizer.quantize(embedding, layers)),
    )
    attention, _ = choose_attention("auto", CPU, torch.bfloat16)
    model = Qwen3Model(
        weights,
        architecture,
        attention=behind_prefix(attention),
        dense=dense,
        device=CPU,
        dtype=torch.bfloat16,
    )
    return embedding_head(model), weights.layers, quantizer.kept


def assert_near(vectors: np.ndarray, expected: np.ndarray) -> None:
    cosines = (vectors * expected).sum(1)
    assert cosines.mean() >= 0.999, f"mean cosine {cosines.mean():.5f}"
    assert cosines.min() >= 0.995, f"worst cosine {cosines.min():.5f}"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Chinese law, English help articles, and short ones."""
    return [*(text.text for text in load_texts()[:120]), "x", "中", "select * from t;"]


@pytest.mark.parametrize("is_planted", [False, True], ids=["tiny", "planted"])
def test_fp8_keeps_the_vectors(tiny, texts, tmp_path, is_planted):
    """Cosines to float32 are at least 0.999 in the mean and 0.995 at worst, outliers or not."""
    folder = plant_outliers(tmp_path / "planted") if is_planted else TINY
    model, layers, kept = fp8_model(folder)
    assert not kept
    assert all(
        getattr(layer, name).values.dtype == E4M3 for layer in layers for name in PROJECTIONS
    )
    vectors = model(PackedBatch.pack(Tokenizer(folder).encode(texts)))()
    assert_near(vectors, tiny.encode_documents(texts))


def test_queries_reuse_their_instruction(tiny):
    """Behind an instruction's kept keys and values, fp8 queries are still float32's."""
    model, _, _ = fp8_model(TINY)
    tokenizer = Tokenizer(TINY)
    prompt = tokenizer.prompt(query_prompt(WEB_SEARCH))
    queries = ["怎么退货？", "how do I reset my password", "x"]
    ids = tokenizer.encode([prompt.tail + query for query in queries])
    vectors = model(PackedBatch.pack(ids, prompt.prefix_ids))()
    assert_near(vectors, tiny.encode_queries(queries))


def test_what_fp8_would_spoil_stays_in_bfloat16(small_checkpoint, caplog):
    """Projections above the allowed error are bfloat16 and named in the log; all others fp8."""
    caplog.set_level("INFO")
    _, layers, kept = fp8_model(small_checkpoint)
    assert 0 < len(kept) < len(layers) * len(PROJECTIONS)
    for i, layer in enumerate(layers):
        for name in PROJECTIONS:
            weight = getattr(layer, name)
            is_kept = f"layers.{i}.{name}" in kept
            dtype = weight.values.dtype if isinstance(weight, QuantizedWeight) else weight.dtype
            assert dtype == (torch.bfloat16 if is_kept else E4M3)
    assert "kept in bfloat16, where fp8 would lose too much" in caplog.text
    assert all(name in caplog.text for name in kept)


@pytest.mark.parametrize("num_rows", [1, 2, 100])
def test_fp8_products_lose_only_the_rounding(num_rows):
    """The product is that of the rounded numbers; rounding moves a bell curve's by 4 %."""
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, 1024, generator=generator)
    weight = torch.randn(96, 1024, generator=generator)
    rows, rounded = to_e4m3(x), quantize_weight_fp8(weight)
    y = product(rows, rounded, torch.float32)
    exact = (rows.values.double() * rows.scale) @ rounded.to_float().double().T
    assert (y - exact).norm() <= 1e-6 * exact.norm()
    true = x.double() @ weight.double().T
    assert (y - true).norm() <= 0.042 * true.norm()


def test_rows_are_rounded_to_the_nearest_level():
    """No value moves by more than a sixteenth of itself; the largest of a row becomes 448."""
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    x[1] *= 1e20
    x[2] *= 1e-20
    x[3] = 0
    values, scale = to_e4m3(x)
    moved = (values.float() * scale - x).abs()
    assert (moved <= x.abs() / 16 + scale * 2**-10).all()
    assert (values.float().abs().amax(1)[[0, 1, 2, 4, 5]] == 448).all()
    assert not values[3].float().any()
    for row in range(6):
        alone = to_e4m3(x[row : row + 1])
        assert torch.equal(alone.values.float(), values[row : row + 1].float())


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_older_cards_are_refused(capability):
    """A card before Ada cannot multiply fp8, and is told so with its capability."""
    reason = fp8_obstacle(CPU, capability)
    have = f"{capability[0]}.{capability[1]}"
    assert reason == f"needs a card of compute capability 8.9 or newer, this one has {have}"
    for newer in ((8, 9), (9, 0), (12, 0)):
        assert fp8_obstacle(CPU, newer) is None


@without_cuda
def test_without_a_card_fp8_is_refused():
    """fp8 with device "auto" is CUDA: without a card it is an error that says what there is."""
    with pytest.raises(ConfigError, match=r'needs an NVIDIA card.* use "int8" on an x86 CPU'):
        Qwen3Encoder(EncoderConfig(model="tiny", quantization="fp8"))


@pytest.mark.parametrize(("quantization", "device"), [("fp8", "cpu"), ("int8", "cuda")])
def test_each_quantization_has_its_device(quantization, device):
    """fp8 on a processor, and int8 on a card, are errors that name the device to use."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a card")
    use = {"fp8": "cuda", "int8": "cpu"}[quantization]
    with pytest.raises(ConfigError, match=f'use device="{use}" or "auto"'):
        resolve(EngineConfig(model="tiny", quantization=quantization, device=device))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp8_goes_with_bfloat16(dtype):
    """A dtype that fp8's other half cannot have is refused when the config is made."""
    with pytest.raises(ConfigError, match=f"dtype is '{dtype}'.*bfloat16"):
        EncoderConfig(model="tiny", quantization="fp8", dtype=dtype)
    assert EncoderConfig(model="tiny", quantization="fp8", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.skipif(not has_packed_products(), reason="int8 needs x86 and oneDNN")
def test_int8_weights_do_not_become_fp8(tmp_path):
    """A folder of int8 weights is refused as fp8, and its source asked for."""
    quantize_model("tiny", tmp_path / "int8")
    with pytest.raises(
        ConfigError, match="are int8 already; give the model that they were made of"
    ):
        Qwen3Encoder(EncoderConfig(model=str(tmp_path / "int8"), quantization="fp8"))


@pytest.mark.cuda
def test_fp8_on_the_card(tiny, texts):
    """On a card of sm_89 or newer fp8 keeps float32's vectors; the contract carries its name."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs sm_89")
    with Qwen3Encoder(EncoderConfig(model="tiny", quantization="fp8")) as encoder:
        assert encoder.contract.quantization == "fp8"
        assert_near(encoder.encode_documents(texts), tiny.encode_documents(texts))
        assert_near(encoder.encode_queries(texts[:9]), tiny.encode_queries(texts[:9]))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_fused_forward_on_the_card(tiny, texts, dtype, caplog):
    """On a card the fused kernels run, and give the processor's vectors in every dtype."""
    caplog.set_level("INFO")
    with Qwen3Encoder(EncoderConfig(model="tiny", device="cuda", dtype=dtype)) as encoder:
        assert "kernels: fused (Triton)" in caplog.text
        assert_near(encoder.encode_documents(texts), tiny.encode_documents(texts))
        assert_near(encoder.encode_queries(texts[:9]), tiny.encode_queries(texts[:9]))
