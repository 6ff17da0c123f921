"""One command for one card: its ceilings, correctness text by text, then speed beside others.

    python -m benchmarks.gpu                                  # one card, under nine minutes
    python -m benchmarks.gpu --device cpu --shape small       # a trial of the command itself

Random weights at the true shape, the same token ids for every engine, no text twice. Each section
is written to the results as soon as it is done; one that fails, or for which no time is left, says
so there. bfloat16 throughout but for the float32 that correctness is measured against.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console

from benchmarks import gpu_measures as measures
from benchmarks.gpu_ceilings import measure_ceilings
from benchmarks.gpu_chart import draw
from benchmarks.gpu_engines import Engine, Ours, SentenceTransformers, Transformers
from benchmarks.gpu_workload import CARD, MIXES, SHAPES, TRIAL, Scale, matrix_parameters
from qwen3_embedding_integrations import ConfigError
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.bench.random_model import write_checkpoint
from qwen3_embedding_integrations.core.checkpoint import read_architecture
from qwen3_embedding_integrations.core.tokenizer import Tokenizer

HERE = Path(__file__).parent
PACKAGES = (
    "qwen3-embedding-integrations", "torch", "transformers", "sentence-transformers", "numpy",
)  # fmt: skip
MAX_ID = 150_000  # above it stand special and unused ids
TIME_S = 8 * 60
SECONDS_NEEDED = 30  # a section is not begun with less left: the longest takes about so long


class Run:
    """One run of the benchmark: what is measured, where it is written, how long it may take."""

    def __init__(
        self, device: str, shape: str, scale: Scale, out: Path, work: Path, command: str
    ) -> None:
        self.path = out / f"gpu-{shape}"
        self.console = Console()
        self.deadline = time.perf_counter() + TIME_S
        folder = work / f"random-{shape}"
        if not (folder / "model.safetensors").is_file():
            self.say("making random weights")
            write_checkpoint(folder, SHAPES[shape])
        architecture, tokenizer = read_architecture(folder), Tokenizer(folder)
        num_ids = min(MAX_ID, tokenizer.end_id)
        self.case = measures.Case(folder, device, scale, architecture, tokenizer, num_ids)
        self.result: dict[str, Any] = {
            **describe(command, packages=PACKAGES),
            "device": device,
            "card": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
            "model": {"shape": shape, "matrix_parameters": matrix_parameters(architecture)},
            "engines": {},
        }

    def say(self, text: str) -> None:
        """Tell the terminal what is done."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def section(self, where: dict[str, Any], name: str, measure: Callable[[], Any]) -> None:
        """Put what `measure` returns under a name, or why it did not; write all results so far."""
        start = time.perf_counter()
        if self.deadline - start < SECONDS_NEEDED:
            where[name] = {"skipped": "no time was left"}
        else:
            try:
                where[name] = measure()
            except Exception as error:
                where[name] = {"failed": f"{type(error).__name__}: {error}"}
        self.say(f"{name} ({time.perf_counter() - start:.1f} s): {json.dumps(where[name])}")
        self.write()

    def write(self) -> None:
        """Write the results so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.result, indent=1, ensure_ascii=False) + "\n"
        self.path.with_suffix(".json").write_text(text, encoding="utf-8")


def measure_all(run: Run) -> None:
    """Measure the ceilings, then each engine by itself: one at a time is on the device."""
    result, case = run.result, run.case
    folder, device = case.folder, case.device
    run.section(result, "ceilings", lambda: measure_ceilings(case.architecture, device, case.scale))
    checked = measures.Checked(case)
    run.section(result, "reference", checked.measure_reference)
    makers: dict[str, Callable[[], Engine]] = {
        "ours bfloat16": lambda: Ours(folder, device, dtype="bfloat16"),
        "ours fp8": lambda: Ours(folder, device, quantization="fp8"),
        "sentence-transformers bfloat16": lambda: SentenceTransformers(folder, device, "bfloat16"),
        "transformers bfloat16": lambda: Transformers(folder, device, "bfloat16"),
    }
    for name, make in makers.items():
        run.say(f"{name}:")
        measured = result["engines"][name] = {}
        try:
            engine = make()
        except Exception as error:
            # ConfigError says that this device, or this version, has no such thing.
            kind = "skipped" if isinstance(error, ConfigError) else "failed"
            measured[kind] = f"{type(error).__name__}: {error}"
            run.say(f"  {kind}: {error}")
            run.write()
            continue
        try:
            _measure_engine(run, engine, measured, checked)
        finally:
            engine.close()
    run.section(result, "budget_sweep", lambda: _sweep_budgets(case))
    result["verdict"] = _verdict(result)
    run.write()


def _measure_engine(
    run: Run, engine: Engine, measured: dict[str, Any], checked: measures.Checked
) -> None:
    case = run.case
    peak = run.result["ceilings"].get("square_product_tflops", {}).get("bfloat16")
    run.section(measured, "correctness", lambda: checked.errors(engine))
    for name, texts in case.texts().items():
        run.section(
            measured, name, lambda texts=texts: measures.throughput(case, engine, texts, peak)
        )
    parts: dict[str, Callable[[measures.Case, Engine], Any]] = {
        "one query": measures.latency,
        "queries in one call": measures.batched_queries,
        "strings": measures.strings,
    }
    if not isinstance(engine, Transformers):
        parts["concurrent queries"] = measures.concurrent
    if isinstance(engine, Ours) and case.device.startswith("cuda"):
        parts["profile"] = measures.profile
    for name, measure in parts.items():
        run.section(measured, name, lambda measure=measure: measure(case, engine))


def _sweep_budgets(case: measures.Case) -> dict[str, Any]:
    """Return tokens a second of the first mix for each token budget."""
    texts = case.texts()[MIXES[0].name]
    rates: dict[str, Any] = {}
    for budget in case.scale.budgets:
        engine = Ours(case.folder, case.device, dtype="bfloat16", max_batch_tokens=budget)
        try:
            seconds = measures.wall_s(lambda engine=engine: engine.embed(texts, 0), 3)
        finally:
            engine.close()
        rates[str(budget)] = sum(map(len, texts)) / seconds
    return rates


def _verdict(result: dict[str, Any]) -> dict[str, Any]:
    """Return whether ours is as near to float32 as allowed, and how many times as fast."""
    engines = result["engines"]
    ours = engines["ours bfloat16"]
    correctness = ours.get("correctness", {})
    ratio = correctness.get("mean_error_over_transformers")
    times: dict[str, Any] = {}
    for name, measured in engines.items():
        for mix in MIXES:
            theirs = measured.get(mix.name, {}).get("tokens_per_s")
            mine = ours.get(mix.name, {}).get("tokens_per_s")
            if theirs and mine and not name.startswith("ours"):
                times.setdefault(name, {})[mix.name] = mine / theirs
    is_near = ratio is not None and ratio <= measures.ALLOWED_ERROR_RATIO
    return {
        "error_ratio": ratio,
        "texts_beyond_allowed": correctness.get("texts_beyond_allowed"),
        "is_near_enough": is_near,
        "times_as_fast_as": times,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / ".cache", help="for the weights")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    scale = TRIAL if options.shape == "small" else CARD
    command = shlex.join(["python", "-m", "benchmarks.gpu", *given])
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; try --device cpu --shape small")
    run = Run(options.device, options.shape, scale, options.out, options.work, command)
    measure_all(run)
    draw(run.result, run.path)
    run.say(f"{run.path}.json")
    if not run.result["verdict"]["is_near_enough"]:
        raise SystemExit("ours is not as near to float32 as it must be, see the verdict")


if __name__ == "__main__":
    main()
