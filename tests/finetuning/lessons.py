"""Small things to learn, and the options with which `tiny` learns them in a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3_embedding_integrations.finetuning import FinetuneConfig

THINGS = ["password", "invoice", "parcel", "account", "printer", "ticket", "invitation", "camera"]
ASKED = ["how do I change my {}", "where can I find the {}", "the {} does not work", "cancel a {}"]
SAME = ["changing my {}", "looking for the {}", "my {} is broken", "I no longer want the {}"]


def write_pairs(path: Path, *, start: int = 0, count: int = 40) -> Path:
    """Write a .tsv of pairs, every other one of the same meaning; `start` chooses others."""
    rows = ["sentence1\tsentence2\tlabel"]
    for n in range(start, start + count):
        thing, kind = THINGS[n % 8], (n // 8) % 4
        other = kind if n % 2 else (kind + 1) % 4
        number = f" number {n}"
        rows.append(f"{ASKED[kind].format(thing)}{number}\t{SAME[other].format(thing)}\t{n % 2}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_examples(path: Path, *, start: int = 0, count: int = 24) -> Path:
    """Write a .jsonl of queries, each with one positive."""
    rows = [
        {
            "query": ASKED[n % 4].format(THINGS[n // 4 % 8]) + f" number {n}",
            "positive": [f"{SAME[n % 4].format(THINGS[n // 4 % 8])}, see page {n}."],
        }
        for n in range(start, start + count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def pairs_config(folder: Path, **options: Any) -> FinetuneConfig:
    """Return the options of a run on pairs that are written to the folder."""
    chosen: dict[str, Any] = {
        "task": "pairs",
        "model": "tiny",
        "train": str(write_pairs(folder / "train.tsv")),
        "dev": str(write_pairs(folder / "dev.tsv", start=100, count=16)),
        "out": str(folder / "adapter"),
        "device": "cpu",
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "patience": 100,
    }
    return FinetuneConfig(**{**chosen, **options})


def retrieval_config(folder: Path, **options: Any) -> FinetuneConfig:
    """Return the options of a run on queries that are written to the folder."""
    chosen: dict[str, Any] = {
        "task": "retrieval",
        "model": "tiny",
        "train": str(write_examples(folder / "train.jsonl")),
        "dev": str(write_examples(folder / "dev.jsonl", start=100, count=12)),
        "out": str(folder / "adapter"),
        "device": "cpu",
        "epochs": 2,
        "batch_size": 12,
        "mini_batch_size": 5,
        "negatives": 2,
        "learning_rate": 1e-3,
    }
    return FinetuneConfig(**{**chosen, **options})
