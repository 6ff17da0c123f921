"""A checkpoint as an ONNX graph: token ids (B, S) and lengths (B,) to unit vectors (B, H).

Only attention sees the padding: what comes before and after it runs on the T real tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from ..core.checkpoint import read_architecture
from ..core.exported import STEP
from ..core.linear import Weight, quantize_weight
from ..core.quantization import CPU, Quantizer
from ..core.tokenizer import Tokenizer
from ..core.weights import Layer, load_weights
from ..errors import ConfigError, needs

with needs("onnx", extra="onnx"):
    import onnx
    from onnx import TensorProto, helper

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
RUNTIME = "com.microsoft"  # ONNX Runtime's own: attention without scores, products of fewer bits
RUNTIME_OPERATORS = {"GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits"}
OPSETS = {"": 23, RUNTIME: 1}
IR_VERSION = 11  # of ONNX 1.18, which brought opset 23
ALIGNMENT = 4096  # where a weight begins in the data file: runtimes map pages
INLINE_BYTES = 1024  # up to which a constant stays in the graph, whose shapes it may decide
BLOCK = 32  # weights that share a scale in int4


def write_graph(
    folder: Path, path: Path, precision: str, *, is_portable: bool = False
) -> dict[str, float]:
    """Write the model in `folder` to `path`, its weights to a file beside it.

    Returns the projections that int8 and int4 leave in floats, and the errors that decided it.
    `is_portable` keeps to operators that OpenVINO knows as well.
    Raises ConfigError for a weight that float16 cannot hold.
    """
    quantizer = None
    if precision in {"int8", "int4"}:
        quantizer = Quantizer(read_architecture(folder), Tokenizer(folder))
    with path.with_name(path.name + ".data").open("wb") as data:
        graph = Qwen3Graph(folder, data, precision, is_portable=is_portable)

        def pack(embedding: torch.Tensor, layers: Iterable[Layer]) -> Iterator[None]:
            graph.embed(embedding)
            for layer in layers if quantizer is None else quantizer.quantize(embedding, layers):
                graph.append(layer)
                yield  # written: no two layers are in memory

        architecture = graph.architecture
        weights = load_weights(folder, architecture, device=CPU, dtype=torch.float32, pack=pack)
        onnx.save_model(graph.finish(weights.norm), path)
    return quantizer.kept if quantizer else {}


class Graph:
    """Nodes and constants; large constants go straight to a file."""

    def __init__(self, data: BinaryIO) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._data = data

    def __call__(self, op: str, *inputs: str, num_outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(num_outputs)]
        domain = RUNTIME if op in RUNTIME_OPERATORS else ""
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names[0]

    def constant(
        self,
        values: torch.Tensor | npt.ArrayLike,
        kind: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> str:
        """Add a constant and return its name; `kind` and `shape` are those of packed values."""
        array = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype) if kind is None else kind
        shape, array = shape or array.shape, np.ascontiguousarray(array)
        tensor = TensorProto(name=f"constant_{len(self.constants)}", data_type=kind, dims=shape)
        if array.nbytes <= INLINE_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % ALIGNMENT))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"offset": self._data.tell(), "length": array.nbytes}
            for key, value in {"location": Path(self._data.name).name, **place}.items():
                tensor.external_data.add(key=key, value=str(value))
            self._data.write(array.data)
        self.constants.append(tensor)
        return tensor.name


class Qwen3Graph:
    """What Qwen3Model (core/model.py) computes, layer after layer."""

    def __init__(self, folder: Path, data: BinaryIO, precision: str, *, is_portable: bool) -> None:
        self.architecture = a = read_architecture(folder)
        self._precision, self._is_portable = precision, is_portable
        self._num_layers = 0
        self._graph = add = Graph(data)
        first, second, flat = (add.constant([n]) for n in (0, 1, -1))
        zero, one = add.constant(np.int64(0)), add.constant(np.int64(1))
        self._shape = add("Shape", "input_ids")  # B, S
        max_seqlen = add("Gather", self._shape, one)
        positions = add("Range", zero, max_seqlen, one)  # (S,)
        by_text = add("Unsqueeze", "lengths", second)
        is_real = add("Reshape", add("Less", add("Unsqueeze", positions, first), by_text), flat)
        self._rows = add("Reshape", add("NonZero", is_real), flat)  # (T,) in B S
        self._last = add("Sub", add("CumSum", "lengths", zero), one)  # (B,) in T
        # Padding repeats the token before it: causal attention shows no text what is behind it.
        order = add("CumSum", add("Cast", is_real, to=INT64), zero)
        self._places = add("Sub", order, one)  # (B S,) in T
        self._token_ids = add("Gather", add("Reshape", "input_ids", flat), self._rows)
        self._lengths = add("Cast", add("Sub", "lengths", one), to=INT32)
        self._max_seqlen = add("Cast", max_seqlen, to=INT32)
        self._position_ids = add("Expand", add("Unsqueeze", positions, first), self._shape)
        exponents = np.arange(0, a.head_dim, 2, dtype=np.float32) / np.float32(a.head_dim)
        frequencies = add.constant((1 / np.float32(a.rope_theta) ** exponents)[None])
        at = add("Cast", add("Unsqueeze", positions, second), to=FLOAT)
        angles = add("Mul", at, frequencies)
        self._cos, self._sin = add("Cos", angles), add("Sin", angles)  # (S, D / 2)
        add.constant(np.float32(1 / 127))
        add.constants[-1].name = STEP
        self._residual = ""  # (T, H)

    def embed(self, table: torch.Tensor) -> None:
        """Begin with the rows of the embedding, (T, H)."""
        add, is_rounded = self._graph, self._precision in {"int8", "int4"}
        rounded = quantize_weight(table) if is_rounded else None
        stored = self._stored(table) if rounded is None else rounded.values
        rows = add("Gather", add.constant(stored), self._token_ids)
        self._residual = add("Cast", rows, to=FLOAT)
        if rounded is not None:
            scales = add("Gather", add.constant(rounded.scale[:, None]), self._token_ids)
            self._residual = add("Mul", self._residual, scales)

    def append(self, layer: Layer) -> None:
        """Add a layer; in the last one only each text's last token goes past attention."""
        a, add = self.architecture, self._graph
        self._num_layers += 1
        queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        x = self._norm(self._residual, layer.input_norm)
        q, k, v = self._project(x, layer.qkv, [queries, keys, keys])
        by_head = add.constant([0, -1, a.head_dim])
        q = self._norm(add("Reshape", q, by_head), layer.q_norm)
        k = self._norm(add("Reshape", k, by_head), layer.k_norm)
        q, k, v = self._per_text(q, queries), self._per_text(k, keys), self._per_text(v, keys)
        attended = add("Reshape", self._attend(q, k, v), add.constant([-1, queries]))
        attended = add("Gather", attended, self._rows)  # (T, Hq D)
        if self._num_layers == a.num_layers:
            attended = add("Gather", attended, self._last)
            self._residual = add("Gather", self._residual, self._last)
        self._add(*self._project(attended, layer.o, [a.hidden_size]))
        x = self._norm(self._residual, layer.post_attention_norm)
        gate, up = self._project(x, layer.gate_up, [a.intermediate_size] * 2)
        x = add("Mul", add("Mul", gate, add("Sigmoid", gate)), up)
        self._add(*self._project(x, layer.down, [a.hidden_size]))

    def finish(self, norm: torch.Tensor) -> onnx.ModelProto:
        """Return the whole model."""
        add, value = self._graph, helper.make_tensor_value_info
        hidden = self._norm(self._residual, norm)  # (B, H)
        length = add("ReduceL2", hidden, add.constant([-1]), keepdims=1)
        add.nodes.append(helper.make_node("Div", [hidden, length], ["vectors"]))
        inputs = [value("input_ids", INT64, ["B", "S"]), value("lengths", INT64, ["B"])]
        outputs = [value("vectors", FLOAT, ["B", self.architecture.hidden_size])]
        graph = helper.make_graph(add.nodes, "qwen3", inputs, outputs, add.constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _attend(self, q: str, k: str, v: str) -> str:
        add, angles = self._graph, (self._cos, self._sin)
        num_heads, num_kv_heads = self.architecture.num_heads, self.architecture.num_kv_heads
        if self._is_portable:
            q = add("RotaryEmbedding", q, *angles, self._position_ids, num_heads=num_heads)
            k = add("RotaryEmbedding", k, *angles, self._position_ids, num_heads=num_kv_heads)
            heads = {"q_num_heads": num_heads, "kv_num_heads": num_kv_heads}
            return add("Attention", q, k, v, is_causal=1, **heads)
        inputs = q, k, v, "", "", self._lengths, self._max_seqlen, *angles
        heads = {"num_heads": num_heads, "kv_num_heads": num_kv_heads}
        return add("GroupQueryAttention", *inputs, num_outputs=3, do_rotary=1, **heads)

    def _norm(self, x: str, weight: torch.Tensor) -> str:
        options: dict[str, Any] = {"axis": -1, "epsilon": self.architecture.rms_norm_eps}
        scale = self._graph.constant(weight)
        return self._graph("SimplifiedLayerNormalization", x, scale, **options)

    def _add(self, x: str) -> None:
        self._residual = self._graph("Add", self._residual, x)

    def _per_text(self, x: str, width: int) -> str:
        """Return rows of T tokens as (B, S, width)."""
        add = self._graph
        shape = add("Concat", self._shape, add.constant([width]), axis=0)
        return add("Reshape", add("Gather", x, self._places), shape)

    def _project(self, x: str, weight: Weight, widths: list[int]) -> list[str]:
        """Return the products of x with the parts of a weight, each of so many outputs."""
        add = self._graph
        if isinstance(weight, torch.Tensor):
            return [self._product(x, part) for part in weight.split(widths)]
        if self._precision == "int4":
            return [self._product_int4(x, part) for part in weight.to_float().split(widths)]
        parts = list(zip(weight.values.split(widths), weight.scale.split(widths), strict=True))
        if self._is_portable:  # how activations are rounded, the other runtime knows
            return [self._widened(x, add.constant(v), s, axis=0) for v, s in parts]
        # Rows are rounded as the core's: 127 levels on each side, so that no row changes another.
        peak = add("ReduceMax", add("Abs", x), add.constant([-1]), keepdims=1)
        peak = add("Max", peak, add.constant(np.float32(1e-30)))
        middle = add.constant(np.uint8(128))
        levels = add("QuantizeLinear", add("Div", x, peak), STEP, middle)
        products: list[str] = []
        for values, scale in parts:
            inputs = levels, add.constant(values.t()), STEP, add.constant(scale), middle
            products.append(add("Mul", add("MatMulIntegerToFloat", *inputs), peak))
        return products

    def _product(self, x: str, weight: torch.Tensor) -> str:
        stored = self._graph.constant(self._stored(weight.t()))
        if self._precision != "fp32":
            stored = self._graph("Cast", stored, to=FLOAT)
        return self._graph("MatMul", x, stored)

    def _widened(self, x: str, values: str, scale: torch.Tensor, **layout: int) -> str:
        """Return a product with rounded weights (N, K) in ONNX's own notation."""
        add = self._graph
        weight = add("DequantizeLinear", values, add.constant(scale), **layout)
        return add("MatMul", x, add("Transpose", weight, perm=[1, 0]))

    def _product_int4(self, x: str, weight: torch.Tensor) -> str:
        """Return a product with 15 levels in blocks of BLOCK inputs, two in a byte."""
        blocks = weight.view(len(weight), -1, BLOCK)
        scale = blocks.abs().amax(2, keepdim=True).div_(7).clamp_min_(1e-30)
        levels = (blocks / scale).round_().to(torch.int8)
        levels = levels & 15 if self._is_portable else levels + 8
        pairs = (levels[..., 0::2] | levels[..., 1::2] << 4).view(torch.uint8)
        if self._is_portable:
            values = self._graph.constant(pairs, TensorProto.INT4, weight.shape)
            return self._widened(x, values, scale.squeeze(2), axis=1, block_size=BLOCK)
        inputs = x, self._graph.constant(pairs), self._graph.constant(scale.flatten())
        sizes = {"N": weight.shape[0], "K": weight.shape[1], "bits": 4, "block_size": BLOCK}
        # Level 4: activations are int8, with a scale per block.
        return self._graph("MatMulNBits", *inputs, accuracy_level=4, **sizes)

    def _stored(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as it is kept: float32 computes, whatever the file holds."""
        stored = weight.float() if self._precision == "fp32" else weight.half()
        if not stored.isfinite().all():
            raise ConfigError(
                f"precision is {self._precision!r}, and a weight of {weight.abs().max():.3g} is "
                "beyond float16; use fp32"
            )
        return stored


def write_openvino(folder: Path, path: Path, precision: str) -> dict[str, float]:
    """Write the model in `folder` for OpenVINO to `path`, its weights beside it.

    Returns the projections that int8 and int4 leave in floats, and the errors that decided it.
    """
    with needs("openvino", extra="openvino"):
        import openvino
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        kept = write_graph(folder, Path(temporary) / "model.onnx", precision, is_portable=True)
        # Not convert_model, which reports to its maker who has converted what.
        graph = openvino.Core().read_model(Path(temporary) / "model.onnx")
        openvino.save_model(graph, path, compress_to_fp16=False)
    return kept


WRITERS = {"onnx": write_graph, "openvino": write_openvino}
