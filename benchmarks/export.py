"""Exported graphs beside the core: parity, throughput against ONNX Runtime's int8, cold start.

    python -m benchmarks.export --rounds 2                         # tiny: five minutes
    python -m benchmarks.export --shape 0.6b --texts 12 --longest 500      # 5 minutes, 12 GB

Parity on 200 texts of 1 to 2,000 tokens with `tiny`, on fewer at the 0.6B shape (random weights).
Throughput of our int8 graph, of ONNX Runtime's own dynamic int8 (`quantize_dynamic`, per channel)
made of our float32 graph, and of the core, in alternating rounds of one run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.texts import make_texts
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder, export_model
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.bench.random_model import write_checkpoint
from qwen3_embedding_integrations.core.checkpoint import locate_model
from qwen3_embedding_integrations.core.exported import NOTE

HERE = Path(__file__).parent
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
DYNAMIC = ("onnxruntime", "dynamic")  # its own int8
FORMS = [(kind, bits) for kind in ("onnx", "openvino") for bits in ("fp32", "fp16", "int8", "int4")]
FORMS.append(DYNAMIC)
COLD = """
import sys, time
from qwen3_embedding_integrations import Qwen3Encoder
encoder = Qwen3Encoder(sys.argv[1])
encoder.encode_queries(["What is the capital of France?"])
assert "torch" not in sys.modules
"""


def texts_of(model: str, num_texts: int, longest: int) -> list[str]:
    """Return texts of 1 to `longest` tokens, as many short as long."""
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.uniform(0, np.log(longest), num_texts)).astype(int)
    return make_texts(locate_model(EncoderConfig(model=model)), lengths.tolist(), seed=1)


def parity(exported: Qwen3Encoder, texts: list[str], expected: np.ndarray) -> dict[str, float]:
    """Return how far the vectors are from the core's, alone and in one call."""
    alone = np.concatenate([exported.encode_documents([text]) for text in texts])
    batched = exported.encode_documents(texts)
    cosines = np.stack([(alone * expected).sum(1), (batched * expected).sum(1)])
    return {
        "max_difference_alone": float(np.abs(alone - expected).max()),
        "max_difference_batched": float(np.abs(batched - expected).max()),
        "alone_beside_batched": float(np.abs(batched - alone).max()),
        "cosine_mean": float(cosines.mean()),
        "cosine_least": float(cosines.min()),
    }


def make_dynamic(fp32: Path, out: Path) -> None:
    """Write ONNX Runtime's own int8 of a float32 graph, in a folder of ours."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir()
    for name in ("config.json", "tokenizer.json", NOTE):
        shutil.copyfile(fp32 / name, out / name)
    quantize_dynamic(
        fp32 / "model.onnx",
        out / "model.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": 1},  # float: its inference stops at its own operators
    )


def seconds(encoder: Qwen3Encoder, texts: list[str], *, is_query: bool = False) -> float:
    start = time.perf_counter()
    if is_query:
        for text in texts:
            encoder.encode_queries([text])
    else:
        encoder.encode_documents(texts)
    return time.perf_counter() - start


def race(encoders: dict[str, Qwen3Encoder], texts: list[str], rounds: int) -> dict[str, Any]:
    """Return medians of alternating rounds: documents together, and queries one by one."""
    queries = [text[:60] for text in texts[:12]]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    num_tokens = sum(map(next(iter(encoders.values())).count_tokens, texts))
    for number in range(rounds + 1):
        for name, encoder in encoders.items():
            pair = seconds(encoder, texts), seconds(encoder, queries, is_query=True)
            if number:  # the first warms up
                taken[name].append(pair)
    return {
        name: {
            "tokens_per_s": round(num_tokens / statistics.median(one for one, _ in pairs)),
            "tokens_per_s_rounds": [round(num_tokens / one) for one, _ in pairs],
            "query_ms": round(1000 * statistics.median(one for _, one in pairs) / len(queries), 2),
        }
        for name, pairs in taken.items()
    }


def measure(
    model: str, work: Path, forms: list[tuple[str, str]], sizes: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Return parity of every form, and throughput of those in int8."""
    texts = texts_of(model, *sizes)
    with Qwen3Encoder(EncoderConfig(model=model, dtype="float32", on_empty="embed")) as core:
        result: dict[str, Any] = {"texts": len(texts)}
        result["tokens"] = sum(map(core.count_tokens, texts))
        expected = core.encode_documents(texts)
    for form in forms:
        folder, name = work / "-".join(form), " ".join(form)
        if form == DYNAMIC:
            make_dynamic(work / "onnx-fp32", folder)
        else:
            export_model(model, folder, format=form[0], precision=form[1])
        size = sum(path.stat().st_size for path in folder.glob("model*"))
        with Qwen3Encoder(EncoderConfig(model=str(folder), on_empty="embed")) as exported:
            result[name] = {"bytes": size, **parity(exported, texts, expected)}
        print(model, name, result[name], flush=True)
    folders = [work / "-".join(form) for form in forms if form[1] in {"int8", "dynamic"}]
    encoders = {folder.name: Qwen3Encoder(str(folder)) for folder in folders}
    encoders["core int8"] = Qwen3Encoder(EncoderConfig(model=model, quantization="int8"))
    result["throughput"] = race(encoders, [text for text in texts if text.strip()], rounds)
    print(json.dumps(result["throughput"]), flush=True)
    return result


def cold_start(folder: Path) -> dict[str, Any]:
    """Return the seconds of a whole process that loads, encodes one query and ends."""
    taken: list[float] = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", COLD, str(folder)], check=True)
        taken.append(round(time.perf_counter() - start, 3))
    return {"median_s": statistics.median(taken), "rounds_s": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=["tiny", "0.6b"], default="tiny")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--longest", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = arguments.texts, arguments.longest
    result = describe(
        shlex.join(["python", "-m", "benchmarks.export", *sys.argv[1:]]), packages=PACKAGES
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if arguments.shape == "tiny":
            result |= measure("tiny", work, FORMS, sizes, arguments.rounds)
            for name in ("onnx-fp32", "onnx-int8"):
                result[f"cold start, {name}"] = cold_start(work / name)
        else:
            large = HERE / ".cache" / "random-0.6b"
            if not (large / "model.safetensors").is_file():
                write_checkpoint(large)
            forms = [("onnx", "fp32"), ("onnx", "int8"), DYNAMIC]
            result |= measure(str(large), work, forms, sizes, arguments.rounds)
    path = HERE / "results" / "export.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[arguments.shape] = result
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
