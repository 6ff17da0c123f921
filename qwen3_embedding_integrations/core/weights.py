"""safetensors to fused tensors on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ModelLoadError
from .checkpoint import Architecture, read_quantization, weight_files
from .linear import QuantizedWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SCALE = ".scale"  # what an int8 projection's scales are called, after its name
EMBEDDING = "embed_tokens.weight"
# A causal language model's output layer; read_output_rows reads what counts.
OUTPUT = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, its projections fused by what they read."""

    qkv: Weight  # ((Hq + 2 Hk) D, H)
    o: Weight  # (H, Hq D)
    gate_up: Weight  # (2 F, H)
    down: Weight  # (H, F)
    input_norm: torch.Tensor  # (H,)
    post_attention_norm: torch.Tensor  # (H,)
    q_norm: torch.Tensor  # (D,)
    k_norm: torch.Tensor  # (D,)


@dataclass(frozen=True, slots=True)
class Weights:
    """A Qwen3 decoder's tensors, ready to run."""

    embedding: torch.Tensor  # (vocabulary, H), in the file's dtype: rows are converted when read
    layers: tuple[Any, ...]  # as `pack` made them
    norm: torch.Tensor  # (H,)


def load_weights(
    folder: Path,
    architecture: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
    pack: Callable[[torch.Tensor, Iterable[Layer]], Iterable[Any]] | None = None,
    fold: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> Weights:
    """Return the checkpoint's weights in `dtype` on `device`, its layers as `pack` makes them.

    `pack` gets the embedding and the layers, each read when it is asked for: no two copies of all
    are ever in memory. `fold` gets each projection's name and weight, as the file has it, and
    returns what stands for it, see `Adapter.fold`.

    Accepts one file or shards, names with or without the prefix "model.". Raises ModelLoadError
    when a tensor is missing, misshapen or unknown, or a file is damaged.
    """
    fold = fold or (lambda name, weight: weight)
    reader = _Reader(tensor_readers(folder), folder, architecture, device, dtype, fold)
    return reader.read(pack or (lambda embedding, layers: layers))


@dataclass(eq=False)
class _Reader:
    tensors: dict[str, Callable[[], torch.Tensor]]
    folder: Path
    architecture: Architecture
    device: torch.device
    dtype: torch.dtype
    fold: Callable[[str, torch.Tensor], torch.Tensor]

    def __post_init__(self) -> None:
        self.is_quantized = read_quantization(self.folder) is not None
        self.unread = set(self.tensors) - {OUTPUT}

    def read(self, pack: Callable[[torch.Tensor, Iterable[Layer]], Iterable[Any]]) -> Weights:
        a = self.architecture
        embedding = self._embedding()
        layers = (self._layer(f"layers.{i}.") for i in range(a.num_layers))
        weights = Weights(
            embedding=embedding,
            layers=tuple(pack(embedding, layers)),
            norm=self._vector("norm.weight", a.hidden_size),
        )
        if self.unread:
            names = sorted(self.unread)
            raise ModelLoadError(
                f"{self.folder} has {len(names)} tensors a Qwen3 embedding model does not have "
                f"({', '.join(names[:4])}{', …' if len(names) > 4 else ''}); an adapter or a "
                "quantized checkpoint must be merged into a plain one first"
            )
        return weights

    def _layer(self, prefix: str) -> Layer:
        a = self.architecture
        attn, mlp = "self_attn.", "mlp."
        qkv = [attn + "q_proj", attn + "k_proj", attn + "v_proj"]
        return Layer(
            qkv=self._projection(prefix, "qkv", qkv),
            o=self._projection(prefix, "o", [attn + "o_proj"]),
            gate_up=self._projection(prefix, "gate_up", [mlp + "gate_proj", mlp + "up_proj"]),
            down=self._projection(prefix, "down", [mlp + "down_proj"]),
            input_norm=self._vector(prefix + "input_layernorm.weight", a.hidden_size),
            post_attention_norm=self._vector(
                prefix + "post_attention_layernorm.weight", a.hidden_size
            ),
            q_norm=self._vector(prefix + attn + "q_norm.weight", a.head_dim),
            k_norm=self._vector(prefix + attn + "k_norm.weight", a.head_dim),
        )

    def _projection(self, prefix: str, fused: str, parts: list[str]) -> Weight:
        """Return one weight whose outputs are those of the parts, one after another.

        A folder that `quantize` made holds it as one tensor under its `fused` name.
        """
        shapes = {prefix + name: self.architecture.projections[name] for name in parts}
        num_outputs = sum(num_rows for num_rows, _ in shapes.values())
        columns = shapes[prefix + parts[0]][1]
        fused = prefix + fused
        if self.is_quantized:
            weight = self._tensor(fused + ".weight", (num_outputs, columns))
            if weight.dtype != torch.int8:
                return weight.to(self.dtype, copy=True)
            return QuantizedWeight(weight, self._tensor(fused + SCALE, (num_outputs,)))
        weight = torch.empty(num_outputs, columns, dtype=self.dtype, device=self.device)
        start = 0
        for name, shape in shapes.items():
            part = self.fold(name, self._tensor(f"{name}.weight", shape))
            weight[start : start + len(part)] = part
            start += len(part)
        return weight

    def _vector(self, name: str, length: int) -> torch.Tensor:
        return self._tensor(name, (length,)).to(self.device, self.dtype, copy=True)

    def _embedding(self) -> torch.Tensor:
        a = self.architecture
        table = self._tensor(EMBEDDING, (a.vocab_size, a.hidden_size))
        narrower = self.dtype if self.dtype.itemsize < table.dtype.itemsize else table.dtype
        # Beside int8 weights the table is the larger part of what is in memory: it stays in the
        # file, mapped, and only the rows that texts use are ever read.
        return table.to(self.device, narrower, copy=not self.is_quantized)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self.tensors:
            raise ModelLoadError(f"{self.folder} lacks the tensor {name!r}; download it again")
        tensor = self.tensors[name]()
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{self.folder}: {name} has shape {tuple(tensor.shape)}, config.json says {shape}; "
                "weights and config.json belong to different models"
            )
        is_stored_int8 = self.is_quantized and tensor.dtype == torch.int8
        if not is_stored_int8 and (not tensor.is_floating_point() or tensor.dtype.itemsize < 2):
            raise ModelLoadError(
                f"{self.folder}: {name} is {tensor.dtype}; give the unquantized checkpoint"
            )
        self.unread.discard(name)
        return tensor


def read_output_rows(
    folder: Path, architecture: Architecture, token_ids: Sequence[int]
) -> torch.Tensor:
    """Return the output layer's rows of these tokens, (N, H) in the file's dtype, and no others.

    Where config.json ties the output layer to the embedding, they are the embedding's. Raises
    ModelLoadError where a layer of its own is not there, as in an embedding model.
    """
    name = EMBEDDING if architecture.is_tied else OUTPUT
    shape = [architecture.vocab_size, architecture.hidden_size]
    for path in weight_files(folder):
        with open_file(path) as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                if key.removeprefix("model.") != name:
                    continue
                rows = file.get_slice(key)
                if rows.get_shape() != shape:
                    raise ModelLoadError(
                        f"{folder}: {key} has shape {rows.get_shape()}, config.json says {shape}; "
                        "weights and config.json belong to different models"
                    )
                return torch.cat([rows[token_id : token_id + 1] for token_id in token_ids])
    raise ModelLoadError(
        f"{folder} has no {name}, a reranker's output layer (config.json says it is not tied to "
        "the embedding); an embedding model is loaded with Qwen3Encoder"
    )


def read_output_layer(folder: Path) -> torch.Tensor:
    """Return an output layer of its own, (vocabulary, H), mapped from its file."""
    readers = tensor_readers(folder)
    if OUTPUT not in readers:
        raise ModelLoadError(f"{folder} lacks the tensor {OUTPUT!r}; download it again")
    return readers[OUTPUT]()


def tensor_readers(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return name (without "model.") -> a function that reads the tensor.

    A file is mapped for each tensor anew: what a mapping has shown counts as this process's memory
    until it ends, and would be there twice once the layers are packed.
    """
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in weight_files(folder):
        with open_file(path) as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                readers[name.removeprefix("model.")] = partial(_read_tensor, path, name)
    return readers


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    with open_file(path) as file:
        return file.get_tensor(name)


def open_file(path: Path) -> Any:
    """Return an open safetensors file; a damaged one is a ModelLoadError."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        num_bytes = path.stat().st_size
        raise ModelLoadError(
            f"{path} ({num_bytes:,} bytes) is damaged or cut short ({error}); download it again"
        ) from error
