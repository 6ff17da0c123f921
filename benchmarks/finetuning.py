"""What fine-tuning gains: a pair set and a retrieval set, and what other sets lose by it.

    OMP_NUM_THREADS=1 python -m benchmarks.finetuning DATA OUT [--model MODEL] [--only NAME]

DATA holds afqmc, stsb_zh, stard, cmrc2018 and cranfield as `evaluate` reads them. Each recipe runs
twice at a time: once whole, once killed (SIGKILL) past half of its steps and resumed, to equal
weights. Then the encoder with the adapter is measured beside the one without, on the recipe's test
set, cut to fewer dimensions, and on other sets. Adapters go to OUT, figures to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.evaluation import compare_paired, evaluate, read_dataset
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune

RESULTS = Path(__file__).parent / "results"
WIDE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHARED = {"rank": 16, "alpha": 32, "projections": WIDE, "dropout": 0.0, "learning_rate": 1e-3,
          "gradient_checkpointing": False}  # fmt: skip
WIDTHS = (None, 128, 64, 32)
PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "datasets")
RECIPES: dict[str, dict[str, Any]] = {  # for `tiny` on one core: an hour each
    "afqmc": {
        "task": "pairs",
        "train": "afqmc/train.tsv.gz",
        "test": "afqmc/dev.tsv.gz",
        "dev_fraction": 0.05,
        "temperature": 0.2,
        "epochs": 4,
        "checkpoint_steps": 250,
        "patience": 6,
        **SHARED,
    },
    "stard": {
        "task": "retrieval",
        "train": "stard#train",
        "test": "stard#dev",
        "epochs": 3,
        "batch_size": 32,
        "mini_batch_size": 32,
        "negatives": 1,
        "max_length": 128,
        **SHARED,
    },
}
OTHERS = {"afqmc": ["stsb_zh/test.tsv.gz"], "stard": ["cmrc2018", "cranfield"]}
KILLED = """
import json, os, signal, sys
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune
resume = sys.argv[2] == "resume"
def stop(now):
    if not resume and 2 * now["step"] > now["steps"]:
        os.kill(os.getpid(), signal.SIGKILL)
finetune(FinetuneConfig(**json.loads(sys.argv[1])), resume=resume, on_progress=stop)
"""


def measured(encoder: Qwen3Encoder, data: Path, name: str) -> Any:
    path, _, split = name.partition("#")
    return evaluate(encoder, read_dataset(data / path, split=split or None, on_empty="embed"))


def beside(
    data: Path, name: str, model: str, adapter: str, dimensions: int | None
) -> dict[str, Any]:
    """Return every metric of a set without and with the adapter, and the paired gain."""
    options = {"model": model, "dtype": "float32", "on_empty": "embed", "dimensions": dimensions}
    with (
        Qwen3Encoder(EncoderConfig(**options)) as plain,
        Qwen3Encoder(EncoderConfig(**options, lora=adapter)) as tuned,
    ):
        before, after = (measured(one, data, name) for one in (plain, tuned))
    gain = compare_paired(after.results, before.results)
    return {
        metric: {"before": before.metrics[metric]._asdict(),
                 "after": after.metrics[metric]._asdict(), "gain": gain[metric]._asdict()}
        for metric in after.metrics
    }  # fmt: skip


def tell(now: dict[str, Any]) -> None:
    if len(now) > 2:  # not each step's number
        print(now, flush=True)


def kill_and_resume(config: FinetuneConfig) -> None:
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(config))]
    assert subprocess.run([*command, "begin"], check=False).returncode == -signal.SIGKILL
    subprocess.run([*command, "resume"], check=True)


def run(name: str, data: Path, out: Path, model: str) -> dict[str, Any]:
    options = dict(RECIPES[name])
    options |= {key: str(data / options[key]) for key in ("train", "dev", "test") if key in options}
    config = FinetuneConfig(model=model, out=str(out / name), device="cpu", **options)
    other = FinetuneConfig(model=model, out=str(out / f"{name}-resumed"), device="cpu", **options)
    with ThreadPoolExecutor(1) as beside_this:
        killed = beside_this.submit(kill_and_resume, other)
        report = finetune(config, on_progress=tell)
        killed.result()
    weights, resumed = (
        load_file(Path(one.out, "adapter_model.safetensors")) for one in (config, other)
    )
    shutil.copyfile(Path(config.out, "curves.png"), RESULTS / f"finetuning-{name}.png")
    test = RECIPES[name]["test"]
    return {
        "config": {**asdict(config), "out": name, **RECIPES[name]},
        "report": {**report.to_dict(), "folder": name},
        "resumed_to_the_bit": weights.keys() == resumed.keys()
        and all(torch.equal(weights[key], resumed[key]) for key in weights),
        "folded": {
            width or "all": beside(data, test, model, config.out, width) for width in WIDTHS
        },
        "others": {one: beside(data, one, model, config.out, WIDTHS[0]) for one in OTHERS[name]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", choices=list(RECIPES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "finetuning.json"
    for name in [given.only] if given.only else RECIPES:
        command = shlex.join(
            ["python", "-m", "benchmarks.finetuning", "DATA", "OUT", *sys.argv[3:]]
        )
        result = describe(command, packages=PACKAGES) | run(
            name, given.data, given.out, given.model
        )
        results = json.loads(path.read_text(encoding="utf-8")) | {name: result}
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
