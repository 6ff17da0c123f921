"""int8 weights: what they keep of the vectors, what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen3_embedding_integrations
from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    ModelLoadError,
    Qwen3Encoder,
    quantize_model,
)
from qwen3_embedding_integrations.core import kernels
from qwen3_embedding_integrations.core.checkpoint import read_architecture
from qwen3_embedding_integrations.core.linear import QuantizedWeight, has_packed_products
from qwen3_embedding_integrations.core.loading import resolve
from qwen3_embedding_integrations.core.quantization import PROJECTIONS, Quantizer, _smoothed
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.core.weights import load_weights
from qwen3_embedding_integrations.demo import load_texts

pytestmark = pytest.mark.skipif(not has_packed_products(), reason="needs x86 and oneDNN")

TINY = Path(qwen3_embedding_integrations.__file__).parent / "tiny"
OUTLIER = 5000.0  # times a channel's size, as massive activations have it in large models
CHANNELS = (7, 100)


def plant_outliers(folder: Path) -> Path:
    """Write tiny with channels 5,000 times as large wherever a projection reads, else the same.

    What makes a channel large is multiplied, what reads it divided: the vectors do not change.
    """
    shutil.copytree(TINY, folder)
    architecture = read_architecture(folder)
    tensors = load_file(folder / "model.safetensors")
    prefix = "model." if "model.norm.weight" in tensors else ""
    group = architecture.num_heads // architecture.num_kv_heads
    for i in range(architecture.num_layers):
        attn, mlp = f"{prefix}layers.{i}.self_attn.", f"{prefix}layers.{i}.mlp."
        for channel in CHANNELS:
            tensors[f"{prefix}layers.{i}.input_layernorm.weight"][channel] *= OUTLIER
            for name in "qkv":
                tensors[f"{attn}{name}_proj.weight"][:, channel] /= OUTLIER
            tensors[f"{prefix}layers.{i}.post_attention_layernorm.weight"][channel] *= OUTLIER
            for name in ("gate", "up"):
                tensors[f"{mlp}{name}_proj.weight"][:, channel] /= OUTLIER
            tensors[f"{mlp}up_proj.weight"][channel] *= OUTLIER
            tensors[f"{mlp}down_proj.weight"][:, channel] /= OUTLIER
            tensors[f"{attn}v_proj.weight"][channel] *= OUTLIER
            kv_head, place = divmod(channel, architecture.head_dim)
            for head in range(kv_head * group, (kv_head + 1) * group):
                column = head * architecture.head_dim + place
                tensors[f"{attn}o_proj.weight"][:, column] /= OUTLIER
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_outliers(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Chinese law, English help articles, and short ones."""
    return [*(text.text for text in load_texts()[:120]), "x", "中", "select * from t;"]


def vectors_of(texts: list[str], **options) -> np.ndarray:
    with Qwen3Encoder(EncoderConfig(**options)) as encoder:
        return encoder.encode_documents(texts)


@pytest.fixture(scope="module")
def expected(tiny: Qwen3Encoder, texts: list[str]) -> np.ndarray:
    return tiny.encode_documents(texts)


@pytest.mark.parametrize("model", ["tiny", "planted"])
def test_int8_keeps_the_vectors(model, planted, texts, expected):
    """Cosines to float32 are at least 0.999 in the mean and 0.995 at worst, outliers or not."""
    model = str(planted) if model == "planted" else model
    cosines = (vectors_of(texts, model=model, quantization="int8") * expected).sum(1)
    assert cosines.mean() >= 0.999, f"mean cosine {cosines.mean():.5f}"
    assert cosines.min() >= 0.995, f"worst cosine {cosines.min():.5f}"


def test_the_outliers_are_there(planted, texts, expected):
    """The planted model is tiny, and its channels are 5,000 times as large as they were."""
    vectors = vectors_of(texts, model=str(planted), dtype="float32")
    assert np.abs(vectors - expected).max() <= 1e-2  # bfloat16 weights, divided and rounded
    plain, large = (load_file(f / "model.safetensors") for f in (TINY, planted))
    name = next(name for name in plain if name.endswith("layers.0.mlp.up_proj.weight"))
    ratio = float((large[name][7].float() / plain[name][7].float()).median())
    assert ratio == pytest.approx(OUTLIER, rel=0.01)


def test_outliers_are_what_smoothing_is_for(planted):
    """Without smoothing, the first layer's rounding with outliers is many times as large."""
    architecture = read_architecture(planted)
    quantizer = Quantizer(architecture, Tokenizer(planted))
    weights = load_weights(planted, architecture, device=torch.device("cpu"), dtype=torch.float32)
    residual = weights.embedding[quantizer._input_ids].float()
    layer, inputs = weights.layers[0], {}
    output = quantizer._run(layer, residual, inputs)
    smooth = _smoothed(layer, inputs, architecture)
    same = quantizer._run(smooth, residual)
    assert (same - output).norm() <= 1e-6 * output.norm()  # powers of two change no bit but sums'
    for name in ("qkv", "gate_up", "down"):
        before = inputs[name].abs().amax(0)
        seen: dict[str, torch.Tensor] = {}
        quantizer._run(smooth, residual, seen)
        after = seen[name].abs().amax(0)
        spread = [float(peaks.max() / peaks.median()) for peaks in (before, after)]
        assert spread[1] <= spread[0] / 100, f"{name}: {spread}"


@pytest.mark.parametrize("name", ["self_attn.v_proj", "mlp.up_proj", "self_attn.o_proj"])
def test_a_projection_of_zeros_is_no_nan(tmp_path, texts, name):
    """Where a whole projection is zero, as in an ablated model, int8 is still float32's vectors."""
    ablated = tmp_path / "ablated"
    shutil.copytree(TINY, ablated)
    tensors = load_file(ablated / "model.safetensors")
    next(t for n, t in tensors.items() if n.endswith(f"layers.1.{name}.weight")).zero_()
    save_file(tensors, ablated / "model.safetensors", {"format": "pt"})
    expected = vectors_of(texts[:20], model=str(ablated), dtype="float32")
    ours = vectors_of(texts[:20], model=str(ablated), quantization="int8")
    assert (ours * expected).sum(1).min() >= 0.995


def test_a_failed_quantize_leaves_nothing(tmp_path):
    """A model that cannot be read leaves no part of the folder, nor is a neighbour touched."""
    neighbour = tmp_path / "out.partial"
    neighbour.mkdir()
    (neighbour / "mine.txt").write_text("mine")
    with pytest.raises(ModelLoadError):
        quantize_model(str(neighbour), tmp_path / "out")
    quantize_model("tiny", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    assert (neighbour / "mine.txt").read_text() == "mine"


def test_a_batch_does_not_change_an_int8_vector(texts):
    """Alone, in another order, or among others: the vectors agree to a rounding of one level."""
    some = texts[::6]
    with Qwen3Encoder(EncoderConfig(model="tiny", quantization="int8")) as encoder:
        together = encoder.encode_documents(some)
        turned = encoder.encode_documents(some[::-1])[::-1]
        alone = np.concatenate([encoder.encode_documents([text]) for text in some])
    for name, vectors in {"alone": alone, "turned": turned}.items():
        worst = float((together * vectors).sum(1).min())
        assert worst >= 0.9999, f"{name}: worst cosine {worst:.6f}"


def test_queries_and_documents_stay_apart(tiny):
    """Queries reuse the instruction's keys and values in int8 too, and equal float32's queries."""
    queries = ["怎么退货？", "how do I reset my password", "x"]
    with Qwen3Encoder(EncoderConfig(model="tiny", quantization="int8")) as encoder:
        ours, documents = encoder.encode_queries(queries), encoder.encode_documents(queries)
    assert (ours * tiny.encode_queries(queries)).sum(1).min() >= 0.999
    assert (ours * documents).sum(1).max() < 0.999


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "tiny-int8"
    written = quantize_model("tiny", out)
    assert written.folder == out
    assert written.num_bytes == (out / "model.safetensors").stat().st_size
    return out


def test_a_quantized_folder_is_the_quantized_model(folder, texts):
    """A saved folder gives the very vectors of quantising at load, whether named int8 or not."""
    at_load = vectors_of(texts, model="tiny", quantization="int8")
    assert np.array_equal(vectors_of(texts, model=str(folder)), at_load)
    assert np.array_equal(vectors_of(texts, model=str(folder), quantization="int8"), at_load)


def test_a_quantized_folder_keeps_the_contract(folder, tiny):
    """Its vectors may stand beside the source's: same revision; dtype and quantization differ."""
    with Qwen3Encoder(EncoderConfig(model=str(folder))) as encoder:
        contract = encoder.contract
    assert contract.fingerprint == tiny.contract.fingerprint
    assert contract.quantization == "int8"
    differing = {one.field for one in contract.difference(tiny.contract)}
    assert "quantization" in differing
    assert differing <= {"quantization", "dtype"}


def test_what_int8_would_spoil_stays_in_bfloat16(folder):
    """Projections above the allowed error are bfloat16 in the file; all others are int8."""
    kept = Quantizer(read_architecture(TINY), Tokenizer(TINY))
    weights = load_weights(
        TINY,
        read_architecture(TINY),
        device=torch.device("cpu"),
        dtype=torch.float32,
        pack=kept.quantize,
    )
    tensors = load_file(folder / "model.safetensors")
    for i, layer in enumerate(weights.layers):
        for name in PROJECTIONS:
            is_kept = f"layers.{i}.{name}" in kept.kept
            assert isinstance(getattr(layer, name), QuantizedWeight) != is_kept
            stored = tensors[f"layers.{i}.{name}.weight"].dtype
            assert stored == (torch.bfloat16 if is_kept else torch.int8)
    assert kept.kept, "tiny's first layer is known to be sensitive"


def test_an_existing_folder_is_not_overwritten(folder):
    """quantize refuses a folder that is there, and a model that is int8 already."""
    with pytest.raises(ConfigError, match="exists already"):
        quantize_model("tiny", folder)
    with pytest.raises(ConfigError, match="has int8 weights already"):
        quantize_model(str(folder), folder.with_name("again"))
    assert not folder.with_name("again").exists()


def test_a_strange_quantization_is_refused(tmp_path):
    """Another tool's quantised checkpoint is still no model of ours."""
    other = tmp_path / "gptq"
    shutil.copytree(TINY, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(ModelLoadError, match="its weights are quantized"):
        Qwen3Encoder(EncoderConfig(model=str(other)))
    with pytest.raises(ModelLoadError, match="its weights are quantized"):
        quantize_model(str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_quantized_folder_is_refused(folder, tmp_path):
    """A tensor that is missing from a quantised folder is named."""
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    tensors = load_file(damaged / "model.safetensors")
    del tensors["layers.1.down.scale"]
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks the tensor 'layers\.1\.down\.scale'"):
        Qwen3Encoder(EncoderConfig(model=str(damaged)))


@pytest.mark.parametrize("value", ["int4", "INT8", 8, True])
def test_an_unknown_quantization_is_refused(value):
    """What is not "int8" is a ConfigError that says so."""
    with pytest.raises(ConfigError, match=r"quantization is .*'int8'"):
        EncoderConfig(model="tiny", quantization=value)


def test_auto_means_the_processor():
    """int8 lives on a CPU: device "auto" is the CPU, another device is an error."""
    assert resolve(EncoderConfig(model="tiny", quantization="int8").engine).device == "cpu"
    if torch.cuda.is_available():
        with pytest.raises(ConfigError, match='use device="cpu" or "auto"'):
            resolve(EncoderConfig(model="tiny", quantization="int8", device="cuda").engine)


def test_angles_of_positions_are_transformers():
    """Angles computed for the positions of a batch are those of a table of all positions."""
    positions = torch.tensor([0, 1, 17, 8191, 32767])
    cos, sin = kernels.rotary_angles(positions, 128, 1_000_000.0)
    inverse = 1.0 / 1_000_000.0 ** (torch.arange(0, 128, 2, dtype=torch.int64).float() / 128)
    expected = positions.float()[:, None] * inverse
    assert torch.equal(cos[:, 0], expected.cos())
    assert torch.equal(sin[:, 0], expected.sin())
