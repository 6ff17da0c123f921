"""safetensors to fused tensors on the device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ModelLoadError
from .checkpoint import Architecture, weight_files

if TYPE_CHECKING:
    from collections.abc import Callable

UNUSED = {"lm_head.weight"}  # a causal language model's output layer: an embedding has no use of it


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, its projections fused by what they read."""

    qkv: torch.Tensor  # ((Hq + 2 Hk) D, H)
    o: torch.Tensor  # (H, Hq D)
    gate_up: torch.Tensor  # (2 F, H)
    down: torch.Tensor  # (H, F)
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
    pack: Callable[[Layer], Any],
) -> Weights:
    """Return the checkpoint's weights in `dtype` on `device`, each layer as `pack` makes it.

    Accepts one file or shards, names with or without the prefix "model.". Raises ModelLoadError
    when a tensor is missing, misshapen or unknown, or a file is damaged.
    """
    with _open_tensors(folder) as tensors:
        return _Reader(tensors, folder, architecture, device, dtype).read(pack)


class _Reader:
    def __init__(
        self,
        tensors: dict[str, Callable[[], torch.Tensor]],
        folder: Path,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.tensors = tensors
        self.folder = folder
        self.architecture = architecture
        self.device = device
        self.dtype = dtype
        self.unread = set(tensors) - UNUSED

    def read(self, pack: Callable[[Layer], Any]) -> Weights:
        a = self.architecture
        weights = Weights(
            embedding=self._embedding(),
            layers=tuple(pack(self._layer(f"layers.{i}.")) for i in range(a.num_layers)),
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
        query_width, key_width = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        attn, mlp = prefix + "self_attn.", prefix + "mlp."
        return Layer(
            qkv=self._fused(
                {
                    attn + "q_proj.weight": query_width,
                    attn + "k_proj.weight": key_width,
                    attn + "v_proj.weight": key_width,
                },
                a.hidden_size,
            ),
            o=self._fused({attn + "o_proj.weight": a.hidden_size}, query_width),
            gate_up=self._fused(
                {
                    mlp + "gate_proj.weight": a.intermediate_size,
                    mlp + "up_proj.weight": a.intermediate_size,
                },
                a.hidden_size,
            ),
            down=self._fused({mlp + "down_proj.weight": a.hidden_size}, a.intermediate_size),
            input_norm=self._vector(prefix + "input_layernorm.weight", a.hidden_size),
            post_attention_norm=self._vector(
                prefix + "post_attention_layernorm.weight", a.hidden_size
            ),
            q_norm=self._vector(attn + "q_norm.weight", a.head_dim),
            k_norm=self._vector(attn + "k_norm.weight", a.head_dim),
        )

    def _fused(self, rows: dict[str, int], columns: int) -> torch.Tensor:
        """Return one weight whose outputs are those of the named ones, one after another."""
        weight = torch.empty(sum(rows.values()), columns, dtype=self.dtype, device=self.device)
        start = 0
        for name, num_rows in rows.items():
            weight[start : start + num_rows] = self._tensor(name, (num_rows, columns))
            start += num_rows
        return weight

    def _vector(self, name: str, length: int) -> torch.Tensor:
        return self._tensor(name, (length,)).to(self.device, self.dtype, copy=True)

    def _embedding(self) -> torch.Tensor:
        a = self.architecture
        table = self._tensor("embed_tokens.weight", (a.vocab_size, a.hidden_size))
        narrower = self.dtype if self.dtype.itemsize < table.dtype.itemsize else table.dtype
        return table.to(self.device, narrower, copy=True)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self.tensors:
            raise ModelLoadError(f"{self.folder} lacks the tensor {name!r}; download it again")
        tensor = self.tensors[name]()
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{self.folder}: {name} has shape {tuple(tensor.shape)}, config.json says {shape}; "
                "weights and config.json belong to different models"
            )
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise ModelLoadError(
                f"{self.folder}: {name} is {tensor.dtype}; give the unquantized checkpoint"
            )
        self.unread.discard(name)
        return tensor


@contextmanager
def _open_tensors(folder: Path) -> Generator[dict[str, Callable[[], torch.Tensor]]]:
    """Yield name (without "model.") -> a function that reads the tensor, all files open."""
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], torch.Tensor]] = {}
        for path in weight_files(folder):
            file = stack.enter_context(_open_file(path))
            for name in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                tensors[name.removeprefix("model.")] = lambda f=file, n=name: f.get_tensor(n)
        yield tensors


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        num_bytes = path.stat().st_size
        raise ModelLoadError(
            f"{path} ({num_bytes:,} bytes) is damaged or cut short ({error}); download it again"
        ) from error
