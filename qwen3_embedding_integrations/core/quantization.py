"""int8 and fp8 weights: smoothed by what a few texts show, rounded, kept in bfloat16 if it matters.

Three steps a layer, on the activations of CALIBRATION_TEXTS:

1. Smoothing (SmoothQuant, arXiv:2211.10438): a channel whose activations are large gives part of
   its size to the weights that read it, by a factor that the norm or the projection before it
   takes back. Factors are powers of two: they change no bit of what is computed, and rounding
   noise of one machine or another does not change them.
2. Rounding to 255 levels or to e4m3, a scale per output.
3. A projection whose rounding moves the layer's own contribution by more than `max_error` stays in
   bfloat16.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..errors import ConfigError
from . import kernels
from .attention import Segments, sdpa_attention
from .checkpoint import QUANT_METHOD, Architecture, Task, content_hash, read_architecture, read_json
from .config import EngineConfig, Quantization
from .linear import QuantizedWeight, Weight, quantize_weight, quantize_weight_fp8, to_e4m3
from .lora import CONFIG, load_adapter
from .packing import PackedBatch
from .pairs import PairTokenizer
from .prompts import WEB_SEARCH
from .tokenizer import Tokenizer
from .weights import OUTPUT, SCALE, Layer, Weights, load_weights, read_output_layer

# Plain sentences of several kinds: they show which channels are large, not what is said.
CALIBRATION_TEXTS = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
    "Query: how long do neutrino oscillations take?",
    "人工智能（AI）正在改变医疗行业：2023年，已有超过40%的医院使用机器学习辅助诊断。",
    "def mean(values: list[float]) -> float:\n    return sum(values) / max(1, len(values))\n",
    "The committee met on 12 May 1998 in Geneva; no decision was taken, and the file was closed. "
    "La réunion suivante est prévue à Paris. Что делать, если сервер не отвечает?",
)
CALIBRATION_QUERY = "how long do neutrino oscillations take?"
# What says how texts are read and vectors are made, but for the weights.
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*", "[0-9]_*/*.json")
INDEX = "model.safetensors.index.json"
OTHER_FILES = {INDEX, CONFIG}  # transformers looks for adapters by CONFIG
CPU = torch.device("cpu")
PROJECTIONS = ("qkv", "o", "gate_up", "down")
logger = logging.getLogger(__name__)


class Rounding(NamedTuple):
    """What becomes of a product's two sides, and how far that may move a layer."""

    weight: Callable[[torch.Tensor], QuantizedWeight]  # of (N, K)
    rows: Callable[[torch.Tensor], torch.Tensor]  # of (T, K) float32, as the product reads them
    max_error: float  # of a layer's contribution


class Quantizer:
    """Rounds the layers of a model, one after another, as they are read on `device`."""

    def __init__(
        self,
        architecture: Architecture,
        tokenizer: Tokenizer | PairTokenizer,
        quantization: Quantization = "int8",
        device: torch.device = CPU,
    ) -> None:
        self._architecture = architecture
        self._quantization = quantization
        self._rounding = ROUNDINGS[quantization]
        if isinstance(tokenizer, PairTokenizer):
            sequences = tokenizer.encode_alone(WEB_SEARCH, CALIBRATION_QUERY, CALIBRATION_TEXTS)
        else:
            sequences = tokenizer.encode(CALIBRATION_TEXTS)
        batch = PackedBatch.pack(sequences)
        self._input_ids = torch.from_numpy(batch.input_ids).to(device)
        lengths = batch.lengths.tolist()
        starts = torch.from_numpy(batch.cu_seqlens).to(device)
        self._segments = Segments(lengths, lengths, starts, starts)
        positions = torch.from_numpy(batch.position_ids).to(device)
        angles = kernels.rotary_angles(positions, architecture.head_dim, architecture.rope_theta)
        self._angles = torch.cat(angles, dim=1)  # (T, 2, D / 2)
        self.kept: dict[str, float] = {}  # projections left in bfloat16, and the error they had

    @torch.inference_mode()
    def quantize(self, embedding: torch.Tensor, layers: Iterable[Layer]) -> Iterator[Layer]:
        """Yield each layer with its projections rounded, or bfloat16 where it takes that."""
        residual = F.embedding(self._input_ids, embedding).float()  # (T, H)
        for index, layer in enumerate(layers):
            inputs: dict[str, torch.Tensor] = {}
            output = self._run(layer, residual, inputs)
            smooth = _smoothed(layer, inputs, self._architecture)
            quantized: dict[str, Weight] = {}
            for name in PROJECTIONS:
                weight = getattr(smooth, name)
                quantized[name] = self._rounding.weight(weight)
                moved = self._run(replace(smooth, **{name: quantized[name]}), residual)
                error = float((moved - output).norm() / (output - residual).norm())
                # NaN too: what cannot be judged is not rounded.
                if not error <= self._rounding.max_error:
                    quantized[name] = weight.bfloat16()
                    self.kept[f"layers.{index}.{name}"] = error
            residual = output
            yield replace(smooth, **quantized)
        if self.kept:
            named = ", ".join(f"{name} ({error:.3f})" for name, error in self.kept.items())
            logger.info(
                "kept in bfloat16, where %s would lose too much: %s", self._quantization, named
            )

    def _run(
        self, layer: Layer, residual: torch.Tensor, inputs: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the layer's output (T, H) in float32; put what each projection reads in inputs."""
        a, eps = self._architecture, self._architecture.rms_norm_eps
        seen = {} if inputs is None else inputs
        seen["qkv"] = _normed(residual, layer.input_norm, eps)
        q, k, v = kernels.qk_norm_rope(
            self._project(seen["qkv"], layer.qkv),
            self._angles,
            layer.q_norm,
            layer.k_norm,
            a.num_kv_heads,
            eps,
        )
        seen["o"] = sdpa_attention(q, k, v, self._segments).flatten(1)
        middle = residual + self._project(seen["o"], layer.o)
        seen["gate_up"] = _normed(middle, layer.post_attention_norm, eps)
        gate_up = self._project(seen["gate_up"], layer.gate_up)
        seen["down"] = kernels.swiglu(gate_up, torch.float32).values
        return middle + self._project(seen["down"], layer.down)

    def _project(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """Return what the projection computes, in float32, its roundings included."""
        if isinstance(weight, torch.Tensor):
            return F.linear(x, weight.float())
        return F.linear(self._rounding.rows(x), weight.to_float())


@contextmanager
def new_folder(out: Path, *, like: Path, files: Sequence[str] = SIDE_FILES) -> Generator[Path]:
    """Yield a folder with these files of `like`, not its weights; it becomes `out` at the end.

    After an error nothing is left of it. Raises ConfigError when `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; give the name of a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        partial = Path(temporary) / out.name  # a folder under its own name is whole
        partial.mkdir()
        for path in {path for pattern in files for path in like.glob(pattern)}:
            if path.name not in OTHER_FILES:
                (copy := partial / path.relative_to(like)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
        yield partial
        partial.rename(out)


def edit_json(name: str, source: Path, target: Path, **fields: Any) -> None:
    """Write the file `name` of the folder `source` to `target`, with these fields."""
    text = json.dumps(read_json(source / name) | fields, indent=2) + "\n"
    (target / name).write_text(text, encoding="utf-8")


def quantize_folder(
    config: EngineConfig, folder: Path, out: Path, *, task: Task
) -> dict[str, float]:
    """Write the model in `folder` with int8 weights to the new folder `out`.

    Returns the projections kept in bfloat16 and the errors that decided it. `config` names the
    model in what is written, and the adapter that is folded in first. Raises ConfigError when
    `out` exists.
    """
    with new_folder(out, like=folder) as partial:
        architecture = read_architecture(folder, task)
        adapter = load_adapter(config, folder, architecture)
        tokenizer = Tokenizer(folder) if task == "embedding" else PairTokenizer(folder)
        quantizer = Quantizer(architecture, tokenizer)
        weights = load_weights(
            folder,
            architecture,
            device=CPU,
            dtype=torch.float32,
            pack=quantizer.quantize,
            fold=adapter.fold,
        )
        named = _named_tensors(weights)
        if task == "reranking" and not architecture.is_tied:
            named[OUTPUT] = read_output_layer(folder)
        save_file(named, partial / "model.safetensors")
        edit_json(
            "config.json",
            folder,
            partial,
            quantization_config={
                "quant_method": QUANT_METHOD,
                "source_model": config.model,
                "source_revision": content_hash(folder, architecture),
                "source_lora": adapter.content_hash,
            },
        )
    return quantizer.kept


def _named_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the tensors under a checkpoint's names, scales beside the int8 ones."""
    named = {"embed_tokens.weight": weights.embedding, "norm.weight": weights.norm}
    for index, layer in enumerate(weights.layers):
        prefix = f"layers.{index}."
        for projection in PROJECTIONS:
            weight: Weight = getattr(layer, projection)
            if isinstance(weight, QuantizedWeight):
                named[prefix + projection + SCALE] = weight.scale
                weight = weight.values
            named[prefix + projection + ".weight"] = weight
        named |= {
            prefix + "input_layernorm.weight": layer.input_norm,
            prefix + "post_attention_layernorm.weight": layer.post_attention_norm,
            prefix + "self_attn.q_norm.weight": layer.q_norm,
            prefix + "self_attn.k_norm.weight": layer.k_norm,
        }
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return kernels.add_norm(None, x, weight, eps, torch.float32).values


def _int8_rows(x: torch.Tensor) -> torch.Tensor:
    step = x.abs().amax(1, keepdim=True).div_(127).clamp_min_(1e-30)
    return (x / step).round_().mul_(step)


def _e4m3_rows(x: torch.Tensor) -> torch.Tensor:
    values, scale = to_e4m3(x)
    assert scale is not None
    return values.float() * scale


# With weights and activations of a bell curve int8 moves a product by 0.01, and e4m3, which has
# three bits of fraction, by 0.04.
ROUNDINGS: dict[Quantization, Rounding] = {
    "int8": Rounding(quantize_weight, _int8_rows, max_error=0.03),
    "fp8": Rounding(quantize_weight_fp8, _e4m3_rows, max_error=0.05),
}


def _smoothed(layer: Layer, inputs: dict[str, torch.Tensor], architecture: Architecture) -> Layer:
    """Return the same layer, in float32, with large channels divided between the two sides."""
    a = architecture
    weights = {name: getattr(layer, name).float() for name in PROJECTIONS}
    sizes = {name: inputs[name].square().mean(0).sqrt_() for name in PROJECTIONS}  # each (K,)
    # Heads of a group read the same values, whose projection can take one factor back.
    groups = (a.num_kv_heads, a.num_heads // a.num_kv_heads, a.head_dim)
    shared = sizes["o"].view(groups).amax(1, keepdim=True).expand(groups)
    factors = {
        "qkv": _factors(sizes["qkv"], weights["qkv"]),
        "gate_up": _factors(sizes["gate_up"], weights["gate_up"]),
        "down": _factors(sizes["down"], weights["down"]),
        "o": _factors(shared.flatten(), weights["o"], groups),
    }
    for name, factor in factors.items():
        weights[name] = weights[name] * factor
    of_values = factors["o"].view(groups)[:, 0].flatten()  # (Hk D,)
    weights["qkv"][-len(of_values) :] /= of_values[:, None]
    weights["gate_up"][-len(factors["down"]) :] /= factors["down"][:, None]
    return replace(
        layer,
        **weights,
        input_norm=layer.input_norm.float() / factors["qkv"],
        post_attention_norm=layer.post_attention_norm.float() / factors["gate_up"],
        q_norm=layer.q_norm.float(),
        k_norm=layer.k_norm.float(),
    )


def _factors(
    sizes: torch.Tensor, weight: torch.Tensor, groups: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """Return the power of two (K,) by which each input's weights grow and its values shrink."""
    reach = weight.abs().amax(0)
    if groups is not None:
        reach = reach.view(groups).amax(1, keepdim=True).expand(groups).flatten()
    is_used = (sizes > 0) & (reach > 0)
    if not is_used.any():  # nothing but zeros on one side, as an ablated projection has
        return torch.ones_like(sizes)
    exponents = torch.where(is_used, (sizes / reach).log2() / 2, 0.0)
    return (exponents - exponents[is_used].median() * is_used).round_().exp2_()
