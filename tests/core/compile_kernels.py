"""Compile every Triton kernel for one card without having it; print what each takes, as JSON.

Run as a program by test_kernels.py: in Triton's interpreter, which the tests use, nothing compiles.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwen3_embedding_integrations.core import triton_kernels
from qwen3_embedding_integrations.core.linear import FP8_CAPABILITY

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FP32, FP8 = "fp32", "fp8e4nv"
SHAPES = {  # hidden size, query heads, intermediate size (config.json of the three models)
    "0.6B": (1024, 16, 3072),
    "4B": (2560, 32, 9728),
    "8B": (4096, 32, 12288),
}


def launches(model: str, dtype: str, residual: str, rounded: str) -> dict[str, tuple]:
    """Return kernel and arguments by name; a str is a type, "*" before a pointer's."""
    hidden, q_heads, width = SHAPES[model]
    scale = f"*{FP32}" if rounded == FP8 else None
    row, part = triton.next_power_of_2(width), triton_kernels.BLOCK
    block = row if rounded == FP8 else part
    heads = triton.next_power_of_2(q_heads + 8)
    hidden_block = triton.next_power_of_2(hidden)
    norm = (
        f"*{dtype}",
        f"*{residual}",
        f"*{dtype}",
        f"*{rounded}",
        scale,
        "i32",
        "i32",
        FP32,
        FP32,
    )
    return {
        "add_norm": (triton_kernels._add_norm, (*norm, hidden, hidden_block, True), hidden_block),
        "norm": (
            triton_kernels._add_norm,
            (f"*{residual}", *norm[1:], hidden, hidden_block, False),
            hidden_block,
        ),
        "qk_norm_rope": (
            triton_kernels._qk_norm_rope,
            (f"*{dtype}", f"*{FP32}", f"*{dtype}", f"*{dtype}", "i32", FP32,
             q_heads, 8, 64, heads, 64),
            heads * 64,
        ),
        "swiglu": (
            triton_kernels._swiglu,
            (f"*{dtype}", f"*{rounded}", scale, "i32", width, block),
            block,
        ),
        "to_rows": (
            triton_kernels._to_rows,
            (f"*{dtype}", f"*{rounded}", scale, "i32", q_heads * 128,
             triton.next_power_of_2(q_heads * 128)),
            triton.next_power_of_2(q_heads * 128),
        ),
    }  # fmt: skip


def compiled(kernel, arguments: tuple, block: int, capability: int) -> dict[str, int]:
    """Return the registers and the bytes of stack, where spilled registers go, of one kernel."""
    names = kernel.arg_names
    is_type = [isinstance(value, str) for value in arguments]
    signature = {
        name: value if is_one else "constexpr"
        for name, value, is_one in zip(names, arguments, is_type, strict=False)
    }
    constants = {(i,): value for i, value in enumerate(arguments) if not is_type[i]}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, value in enumerate(arguments)
        if is_type[i] and value != FP32
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": triton_kernels._num_warps(block)}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {word: int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK")}


def main(capability: int) -> None:
    """Print {model: {kernel: {"REG": …, "STACK": …}}} for every form the card runs."""
    forms = [("bf16", "bf16", "bf16"), ("fp16", "fp32", "fp16")]
    if (capability // 10, capability % 10) >= FP8_CAPABILITY:
        forms.append(("bf16", "bf16", FP8))
    results = {}
    for model in SHAPES:
        for dtype, residual, rounded in forms:
            for name, (kernel, arguments, block) in launches(
                model, dtype, residual, rounded
            ).items():
                key = f"{model} {dtype} {residual} {rounded} {name}"
                results[key] = compiled(kernel, arguments, block, capability)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
