"""What fine-tuning gains: a pair set and a retrieval set, and what other sets lose by it.

    python -m benchmarks.finetuning DATA OUT [--model MODEL] [--only NAME]

DATA holds afqmc, stsb_zh, stard, cmrc2018 and cranfield as `evaluate` reads them. Each recipe runs
twice: once whole, once killed (SIGKILL) past half of its steps and resumed, to equal weights.
Then the encoder with the adapter is measured on the other sets, beside the one without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.evaluation import compare_paired, evaluate, read_dataset
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune

WIDE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHARED = {"rank": 16, "alpha": 32, "projections": WIDE, "dropout": 0.0, "learning_rate": 1e-3}
RECIPES: dict[str, dict[str, Any]] = {  # for `tiny` on one core: about ten minutes each
    "afqmc": {
        "task": "pairs",
        "train": "afqmc/train.tsv.gz",
        "test": "afqmc/dev.tsv.gz",
        "dev_fraction": 0.02,
        "temperature": 0.2,
        "epochs": 1,
        "checkpoint_steps": 100,
        "patience": 100,
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
def stop(now):
    if 2 * now["step"] > now["steps"]:
        os.kill(os.getpid(), signal.SIGKILL)
finetune(FinetuneConfig(**json.loads(sys.argv[1])), on_progress=stop)
"""


def measured(encoder: Qwen3Encoder, data: Path, name: str) -> Any:
    path, _, split = name.partition("#")
    return evaluate(encoder, read_dataset(data / path, split=split or None, on_empty="embed"))


def run(name: str, data: Path, out: Path, model: str) -> dict[str, Any]:
    options = dict(RECIPES[name])
    options |= {key: str(data / options[key]) for key in ("train", "dev", "test") if key in options}
    config = FinetuneConfig(model=model, out=str(out / name), device="cpu", **options)
    report = finetune(config, on_progress=lambda now: print(now) if "loss" in now else None)
    resumed = FinetuneConfig(model=model, out=str(out / f"{name}-resumed"), device="cpu", **options)
    code = [sys.executable, "-c", KILLED, json.dumps(asdict(resumed))]
    assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
    finetune(resumed, resume=True)
    ours, theirs = (
        load_file(Path(one.out, "adapter_model.safetensors")) for one in (config, resumed)
    )
    others = {}
    with (
        Qwen3Encoder(EncoderConfig(model=model, dtype="float32", on_empty="embed")) as plain,
        Qwen3Encoder(
            EncoderConfig(model=model, dtype="float32", on_empty="embed", lora=config.out)
        ) as tuned,
    ):
        for other in OTHERS[name]:
            before, after = (measured(one, data, other) for one in (plain, tuned))
            gain = compare_paired(after.results, before.results)
            others[other] = {
                metric: {"before": before.metrics[metric], "after": after.metrics[metric],
                         "gain": gain[metric]}
                for metric in after.metrics
            }  # fmt: skip
    return {
        "report": report.to_dict(),
        "config": {**asdict(config), "out": name, **RECIPES[name]},
        "resumed_to_the_bit": all(torch.equal(ours[key], theirs[key]) for key in theirs),
        "others": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", choices=list(RECIPES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in [given.only] if given.only else RECIPES:
        result = run(name, given.data, given.out, given.model)
        machine = {"processor": platform.processor(), "cores": os.cpu_count()}
        text = json.dumps({"machine": machine, **result}, indent=1, ensure_ascii=False)
        (given.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
