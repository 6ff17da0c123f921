"""`tiny` evaluated on public sets, every metric checked against a computation of its own.

    python -m benchmarks.evaluation --data DIR           # minutes

DIR holds afqmc/dev.tsv.gz, stsb_zh/test.tsv.gz, stsb_multi/{zh,en}-test.tsv.gz, and scifact,
cranfield and cmrc2018 in BEIR's layout. The check shares no code with the package: metrics by their
definitions, one threshold, one query, one document after another.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding_integrations import (
    CachedEncoder,
    Encoder,
    EncoderConfig,
    MemoryStore,
    shared_encoder,
)
from qwen3_embedding_integrations.bench.machine import PACKAGES, describe
from qwen3_embedding_integrations.evaluation import (
    Evaluation,
    PairSet,
    RetrievalSet,
    evaluate,
    read_dataset,
)

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
SETS = [
    "afqmc/dev.tsv.gz",
    "stsb_zh/test.tsv.gz",
    "stsb_multi/zh-test.tsv.gz",
    "stsb_multi/en-test.tsv.gz",
    "scifact",
    "cranfield",
    "cmrc2018",
]
TOLERANCE = 1e-6
SIMILARITY = "Retrieve semantically similar text"
Numbers = npt.NDArray[np.float64]


def plain_classification(scores: Numbers, labels: Numbers) -> dict[str, float]:
    """Try every score as a threshold, and one above all."""
    positives, best_accuracy, best_f1 = labels.sum(), 0.0, 0.0
    average, recall_before = 0.0, 0.0
    for threshold in [math.inf, *sorted(set(scores.tolist()), reverse=True)]:
        chosen = scores >= threshold
        true = float((chosen & (labels == 1)).sum())
        best_accuracy = max(best_accuracy, float((chosen == (labels == 1)).mean()))
        if chosen.any():
            precision, recall = true / chosen.sum(), true / positives
            if true:
                best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
            average += (recall - recall_before) * precision
            recall_before = recall
    return {"accuracy": best_accuracy, "f1": best_f1, "average_precision": average}


def plain_spearman(scores: Numbers, labels: Numbers) -> float:
    """Count for each value how many are below, and half of those that equal it."""
    ranks = [[(x < v).sum() + (x == v).sum() / 2 for v in x] for x in (scores, labels)]
    return float(np.corrcoef(ranks)[0, 1])


def plain_query(ranked: Sequence[str], answers: Mapping[str, int]) -> dict[str, float]:
    """One query's metrics, by their definitions."""
    gains = [max(0, answers.get(document, 0)) for document in ranked]
    ideal = sorted((grade for grade in answers.values() if grade > 0), reverse=True)
    discounted, best = (
        sum(gain / math.log2(place + 2) for place, gain in enumerate(some[:10]))
        for some in (gains, ideal)
    )
    first = next((place for place, gain in enumerate(gains[:10], 1) if gain), None)
    values = {"ndcg@10": discounted / best if best else 0.0, "mrr@10": 1 / first if first else 0.0}
    for depth in (10, 100):
        found = sum(gain > 0 for gain in gains[:depth])
        values[f"recall@{depth}"] = found / len(ideal) if ideal else 0.0
    return values


def plain_metrics(encoder: Encoder, dataset: PairSet | RetrievalSet) -> dict[str, float]:
    """Every metric of a dataset, from the encoder's vectors."""
    if isinstance(dataset, PairSet):
        first, second = (
            encoder.encode_queries(side, instruction=SIMILARITY).astype(np.float64)
            for side in (dataset.first, dataset.second)
        )
        scores = np.array([float(a @ b) for a, b in zip(first, second, strict=True)])
        labels = np.array(dataset.labels)
        values = plain_classification(scores, labels) if dataset.is_binary else {}
        return {**values, "spearman": plain_spearman(scores, labels)}
    ids, texts = list(dataset.documents), list(dataset.documents.values())
    documents = encoder.encode_documents(texts).astype(np.float64)
    totals: dict[str, float] = {}
    queries = encoder.encode_queries(list(dataset.queries.values()))
    for query, vector in zip(dataset.queries, queries, strict=True):
        # Rounded as the package does: between equal documents the first counts as nearer.
        scores = (documents @ vector.astype(np.float64)).astype(np.float32).tolist()
        ranked = sorted(range(len(ids)), key=lambda n: (-scores[n], n))[:100]
        values = plain_query([ids[n] for n in ranked], dataset.relevant[query])
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value / len(queries)
    return totals


def differences(evaluation: Evaluation, plain: Mapping[str, float]) -> dict[str, float]:
    """How far each metric is from the plain computation; the names must be the same."""
    assert evaluation.metrics.keys() == plain.keys(), (evaluation.metrics, plain)
    return {name: abs(one.value - plain[name]) for name, one in evaluation.metrics.items()}


def report(result: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# `tiny` on public sets, by `qwen3_embedding_integrations.evaluation`",
        "",
        f"`{result['command']}`, {result['date']}. 95% intervals: {result['num_resamples']:,} "
        "bootstrap resamples of the queries or pairs. Last column: how far each metric is from a "
        "computation by definition that shares no code with the package.",
        "",
        "| set | items | metric | value | 95% interval | difference |",
        "|---|---|---|---|---|---|",
    ]
    for one in result["sets"]:
        for name, metric in one["metrics"].items():
            cells = [one["dataset"], f"{one['items']:,}", name, f"{metric['value']:.4f}"]
            cells.append(f"{metric['low']:.4f} to {metric['high']:.4f}")
            lines.append(f"| {' | '.join(cells)} | {one['differences'][name]:.0e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    data: Path = parser.parse_args().data
    tiny = shared_encoder(EncoderConfig(model="tiny", dtype="float32", on_empty="embed"))
    encoder = CachedEncoder(tiny, MemoryStore(max_bytes=1 << 30))  # each text is encoded once
    found: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for name in SETS:
        dataset = read_dataset(data / name, on_empty="embed")
        evaluation = evaluate(encoder, dataset)
        off = differences(evaluation, plain_metrics(encoder, dataset))
        assert max(off.values()) <= TOLERANCE, (name, off)
        summary = evaluation.to_dict()
        settings = summary.pop("settings")
        found.append({**summary, "instruction": settings.pop("instruction"), "differences": off})
        sys.stdout.write(f"{name}: {json.dumps(summary['metrics'])}\n")
    result = {
        **describe(
            "python -m benchmarks.evaluation --data DIR",
            packages=(*PACKAGES, "pytrec_eval-terrier"),
        ),
        **settings,
        "sets": found,
    }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(report(result), encoding="utf-8")
    sys.stdout.write(report(result))


if __name__ == "__main__":
    main()
