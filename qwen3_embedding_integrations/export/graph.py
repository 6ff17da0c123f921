"""A checkpoint as an ONNX graph: token ids (B, S) and lengths (B,) to unit vectors (B, H).

Only attention sees the padding: what comes before and after it runs on the T real tokens. The
operators beyond ONNX's own are ONNX Runtime's (domain com.microsoft), which OpenVINO reads too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..core.checkpoint import Architecture, read_architecture
from ..core.linear import Weight, quantize_weight
from ..core.quantization import CPU, Quantizer
from ..core.tokenizer import Tokenizer
from ..core.weights import Layer, load_weights
from ..errors import ConfigError, MissingDependencyError

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as error:
    raise MissingDependencyError("onnx", extra="onnx", reason=error) from error

Precision = Literal["fp32", "fp16", "int8", "int4"]
RUNTIME = "com.microsoft"
OPSETS = {"": 21, RUNTIME: 1}
IR_VERSION = 10  # of ONNX 1.16: what onnxruntime reads from 1.18 on
ALIGNMENT = 4096  # where a weight begins in the data file: runtimes map pages
INLINE_BYTES = 1024  # up to which a constant stays in the graph, whose shapes it may decide
BLOCK = 32  # weights that share a scale in int4


def write_graph(folder: Path, path: Path, precision: Precision) -> dict[str, float]:
    """Write the model in `folder` to `path`, its weights beside it.

    Returns the projections that int8 and int4 leave in floats, and the errors that decided it.
    Raises ConfigError for a weight that float16 cannot hold.
    """
    architecture = read_architecture(folder)
    is_rounded = precision in {"int8", "int4"}
    quantizer = Quantizer(architecture, Tokenizer(folder)) if is_rounded else None
    with path.with_name(path.name + ".data").open("wb") as data:
        graph = Qwen3Graph(_Nodes(data), architecture, precision)

        def pack(embedding: torch.Tensor, layers: Iterable[Layer]) -> Iterator[None]:
            graph.embed(embedding)
            for layer in layers if quantizer is None else quantizer.quantize(embedding, layers):
                graph.add(layer)
                yield  # written: no two layers are in memory

        weights = load_weights(folder, architecture, device=CPU, dtype=torch.float32, pack=pack)
        onnx.save_model(graph.finish(weights.norm), path)
    return quantizer.kept if quantizer else {}


class _Nodes:
    """The nodes and weights of a graph; large weights go straight to a file."""

    def __init__(self, data: Any) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._data = data
        self._numbers = count()

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return its outputs' names; an unknown operator is the runtime's own."""
        names = [f"{op}_{next(self._numbers)}" for _ in range(outputs)]
        domain = "" if op in ONNX_OPERATORS else RUNTIME
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.add(op, *inputs, **attributes)[0]

    def weight(self, values: torch.Tensor | npt.ArrayLike) -> str:
        """Add a constant and return its name."""
        array = np.ascontiguousarray(
            values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        )
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        name = f"weight_{next(self._numbers)}"
        tensor = TensorProto(name=name, data_type=kind, dims=np.shape(values))
        if array.nbytes <= INLINE_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % ALIGNMENT))
            place = {
                "location": Path(self._data.name).name,
                "offset": str(self._data.tell()),
                "length": str(array.nbytes),
            }
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            self._data.write(array.data)
        self.weights.append(tensor)
        return name


ONNX_OPERATORS = {
    "Abs", "Add", "Cast", "Concat", "Cos", "CumSum", "Div", "Gather", "Less", "LpNormalization",
    "MatMul", "Max", "Mul", "NonZero", "QuantizeLinear", "Range", "ReduceMax", "Reshape", "Shape",
    "SimplifiedLayerNormalization", "Sin", "Sub", "Unsqueeze",
}  # fmt: skip


class Qwen3Graph:
    """Grows layer by layer; Qwen3Model (core/model.py) is what it computes."""

    def __init__(self, nodes: _Nodes, architecture: Architecture, precision: Precision) -> None:
        self._architecture = architecture
        self._precision = precision
        self._num_layers = 0
        self._nodes = add = nodes
        first, one, flat = (add.weight(np.array([n])) for n in (0, 1, -1))
        zero, step = add.weight(np.int64(0)), add.weight(np.int64(1))
        self._flat = flat
        self._shape = add("Shape", "input_ids")  # B, S
        max_seqlen = add("Gather", self._shape, step)
        positions = add("Range", zero, max_seqlen, step)  # (S,)
        is_real = add(
            "Less", add("Unsqueeze", positions, first), add("Unsqueeze", "lengths", one)
        )  # (B, S)
        is_real = add("Reshape", is_real, flat)
        self._rows = add("Reshape", add("NonZero", is_real), flat)  # (T,) in B S
        last = add("Sub", add("CumSum", "lengths", zero), step)  # (B,) in T
        self._last, self._last_rows = last, add("Gather", self._rows, last)
        # The place of each row among the real ones. Padding repeats the token before it: what is
        # behind a text's last token, causal attention does not show it.
        order = add("CumSum", add("Cast", is_real, to=TensorProto.INT64), zero)
        self._places = add("Sub", order, step)  # (B S,) in T
        self._token_ids = add("Gather", add("Reshape", "input_ids", flat), self._rows)
        self._lengths = add("Cast", add("Sub", "lengths", step), to=TensorProto.INT32)
        self._max_seqlen = add("Cast", max_seqlen, to=TensorProto.INT32)
        exponents = np.arange(0, architecture.head_dim, 2, np.float32) / architecture.head_dim
        frequencies = add.weight((1 / architecture.rope_theta**exponents).astype(np.float32)[None])
        angles = add("Cast", add("Unsqueeze", positions, one), to=TensorProto.FLOAT)
        angles = add("Mul", angles, frequencies)
        self._angles = add("Cos", angles), add("Sin", angles)  # (S, D / 2) each
        self._residual = self._added = ""

    def embed(self, table: torch.Tensor) -> None:
        """Begin with the rows of the embedding."""
        add = self._nodes
        if self._precision in {"int8", "int4"}:
            rounded = quantize_weight(table)
            values = add("Gather", add.weight(rounded.values), self._token_ids)
            scales = add("Gather", add.weight(rounded.scale[:, None]), self._token_ids)
            values = add("Cast", values, to=TensorProto.FLOAT)
            self._residual = add("Mul", values, scales)
        else:
            stored = add.weight(self._stored(table))
            rows = add("Gather", stored, self._token_ids)
            self._residual = add("Cast", rows, to=TensorProto.FLOAT)  # (T, H)

    def add(self, layer: Layer) -> None:
        """Add one layer; in the last only each text's last token goes past attention."""
        a, add = self._architecture, self._nodes
        self._num_layers += 1
        is_last = self._num_layers == a.num_layers
        queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        x = self._norm(layer.input_norm)
        q, k, v = self._project(x, layer.qkv, [queries, keys, keys])
        q = self._per_text(self._head_norm(q, layer.q_norm), queries)
        k = self._per_text(self._head_norm(k, layer.k_norm), keys)
        attended, _, _ = add.add(
            "GroupQueryAttention",
            *(q, k, self._per_text(v, keys), "", ""),
            *(self._lengths, self._max_seqlen, *self._angles),
            outputs=3,
            num_heads=a.num_heads,
            kv_num_heads=a.num_kv_heads,
            do_rotary=1,
        )  # (B, S, Hq D)
        attended = add("Reshape", attended, add.weight(np.array([-1, queries])))
        attended = add("Gather", attended, self._last_rows if is_last else self._rows)
        if is_last:
            self._residual = add("Gather", self._residual, self._last)
        (self._added,) = self._project(attended, layer.o, [a.hidden_size])
        x = self._norm(layer.post_attention_norm)
        gate, up = self._project(x, layer.gate_up, [a.intermediate_size] * 2)
        x = add("Mul", add("QuickGelu", gate, alpha=1.0), up)
        (self._added,) = self._project(x, layer.down, [a.hidden_size])

    def finish(self, norm: torch.Tensor) -> Any:
        """Return the whole model."""
        add = self._nodes
        hidden = self._norm(norm)  # (B, H)
        add.nodes.append(helper.make_node("LpNormalization", [hidden], ["vectors"], axis=-1, p=2))
        graph = helper.make_graph(
            add.nodes,
            "qwen3-embedding",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
                helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
            ],
            [
                helper.make_tensor_value_info(
                    "vectors", TensorProto.FLOAT, ["B", self._architecture.hidden_size]
                )
            ],
            add.weights,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _norm(self, weight: torch.Tensor) -> str:
        """Return the residual, with what was added to it, normed."""
        add, eps = self._nodes, self._architecture.rms_norm_eps
        scale = add.weight(weight)
        if not self._added:
            return add("SimplifiedLayerNormalization", self._residual, scale, axis=-1, epsilon=eps)
        normed, _, _, self._residual = add.add(
            "SkipSimplifiedLayerNormalization",
            *(self._residual, self._added, scale),
            outputs=4,
            epsilon=eps,
        )
        self._added = ""
        return normed

    def _head_norm(self, x: str, weight: torch.Tensor) -> str:
        a, add = self._architecture, self._nodes
        x = add("Reshape", x, add.weight(np.array([0, -1, a.head_dim])))
        scale = add.weight(weight)
        return add("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=a.rms_norm_eps)

    def _per_text(self, x: str, width: int) -> str:
        """Return rows of T tokens as (B, S, width)."""
        add = self._nodes
        shape = add("Concat", self._shape, add.weight(np.array([width])), axis=0)
        return add("Reshape", add("Gather", x, self._places), shape)

    def _project(self, x: str, weight: Weight, widths: list[int]) -> list[str]:
        """Return the products of x with the parts of a weight, each of so many outputs."""
        add = self._nodes
        if isinstance(weight, torch.Tensor):
            return [self._product(x, part) for part in weight.split(widths)]
        if self._precision == "int4":
            return [self._product_int4(x, part) for part in weight.to_float().split(widths)]
        # Rows are rounded as the core rounds them: symmetric, 127 levels on each side.
        peak = add("ReduceMax", add("Abs", x), add.weight(np.array([-1])), keepdims=1)
        peak = add("Max", peak, add.weight(np.float32(1e-30)))
        step, middle = add.weight(np.float32(1 / 127)), add.weight(np.uint8(128))
        levels = add("QuantizeLinear", add("Div", x, peak), step, middle)
        parts = zip(weight.values.split(widths), weight.scale.split(widths), strict=True)
        return [
            add(
                "Mul",
                add(
                    "MatMulIntegerToFloat",
                    *(levels, add.weight(values.t()), step, add.weight(scale), middle),
                ),
                peak,
            )
            for values, scale in parts
        ]

    def _product(self, x: str, weight: torch.Tensor) -> str:
        add = self._nodes
        stored = add.weight(self._stored(weight.t()))
        if self._precision != "fp32":
            stored = add("Cast", stored, to=TensorProto.FLOAT)
        return add("MatMul", x, stored)

    def _product_int4(self, x: str, weight: torch.Tensor) -> str:
        """Return a product with 16 levels in blocks of BLOCK inputs, two in a byte."""
        num_outputs, num_inputs = weight.shape
        blocks = weight.view(num_outputs, -1, BLOCK)
        scale = blocks.abs().amax(2, keepdim=True).div_(7).clamp_min_(1e-30)
        levels = (blocks / scale).round_().add_(8).to(torch.uint8)
        pairs = levels[..., 0::2] | levels[..., 1::2] << 4
        return self._nodes(
            "MatMulNBits",
            *(x, self._nodes.weight(pairs), self._nodes.weight(scale.flatten())),
            N=num_outputs,
            K=num_inputs,
            bits=4,
            block_size=BLOCK,
            accuracy_level=4,  # products of int8 activations, a scale per block
        )

    def _stored(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as it is kept; what is computed stays float32."""
        if self._precision == "fp32":
            return weight.float()
        stored = weight.half()
        if not stored.isfinite().all():
            raise ConfigError(
                f"precision is {self._precision!r}, and a weight of {weight.abs().max():.3g} is "
                "beyond float16; use fp32"
            )
        return stored
