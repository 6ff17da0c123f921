"""Compile every Triton kernel for one card without having it; write what each takes as JSON.

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

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
F32, FP8 = "*fp32", "*fp8e4nv"
MODELS = {"0.6B": (1024, 16, 3072), "4B": (2560, 32, 9728)}  # hidden size, query heads, MLP's width
FORMS = {  # the dtypes of values, residual and rows
    "bfloat16": ("*bf16", "*bf16", "*bf16"),
    "float16": ("*fp16", F32, "*fp16"),
    "fp8": ("*bf16", "*bf16", FP8),
}


def launches(model: str, form: str) -> dict[str, tuple]:
    """Return, by name, each kernel and its arguments as they are launched: types or constants."""
    hidden, q_heads, width = MODELS[model]
    dtype, residual, rows = FORMS[form]
    power = triton.next_power_of_2
    scale = {"SCALE": F32 if rows == FP8 else None}
    strides = {"x_stride": "i32", "residual_stride": "i32", "factor": "fp32", "eps": "fp32"}
    norm = {"X": dtype, "RESIDUAL": residual, "WEIGHT": dtype, "Y": rows, **scale, **strides}
    norm |= {"WIDTH": hidden, "BLOCK": power(hidden)}
    heads = {"QKV": dtype, "ANGLES": F32, "Q_WEIGHT": dtype, "K_WEIGHT": dtype, "stride": "i32"}
    heads |= {"eps": "fp32", "Q_HEADS": q_heads, "K_HEADS": 8, "HALF": 64, "BLOCK": 64}
    block = power(width) if rows == FP8 else triton_kernels.SWIGLU_BLOCK
    mlp = {"GATE_UP": dtype, "Y": rows, **scale, "stride": "i32", "WIDTH": width, "BLOCK": block}
    plain = {"X": dtype, "Y": rows, **scale, "stride": "i32"}
    plain |= {"WIDTH": q_heads * 128, "BLOCK": power(q_heads * 128)}
    always = {
        "add_norm": (triton_kernels._add_norm, norm | {"ADDS": True}),
        "norm": (triton_kernels._add_norm, norm | {"X": residual, "ADDS": False}),
        "swiglu": (triton_kernels._swiglu, mlp),
    }
    if form == "fp8":
        return always | {"to_rows": (triton_kernels._to_rows, plain)}
    heads["BLOCK_HEADS"] = power(q_heads + 8)
    return always | {"qk_norm_rope": (triton_kernels._qk_norm_rope, heads)}


def resources(kernel, arguments: dict, capability: int) -> dict[str, int]:
    """Return registers per thread, bytes of stack (for spilled ones) and maxima that keep NaN."""
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    assert set(place) == set(arguments)
    types = {name: value for name, value in arguments.items() if isinstance(value, str)}
    constants = {name: value for name, value in arguments.items() if name not in types}
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in place},
        constexprs={(place[name],): value for name, value in constants.items()},
        attrs={
            (place[name],): [["tt.divisibility", 16]] for name in types if types[name] != "fp32"
        },
    )
    options = triton_kernels.options(constants)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {word: int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK")}
    return found | {"max.NaN": binary.asm["ptx"].count("max.NaN")}


def main(capability: int) -> None:
    """Write {"model form kernel": {"REG": …, …}} for the forms that the card runs."""
    forms = ["float16"] if capability < 80 else ["bfloat16", "fp8"][: 1 + (capability >= 89)]
    used = {
        f"{model} {form} {name}": resources(*launch, capability)
        for model in MODELS
        for form in forms
        for name, launch in launches(model, form).items()
    }
    sys.stdout.write(json.dumps(used))


if __name__ == "__main__":
    main(int(sys.argv[1]))
