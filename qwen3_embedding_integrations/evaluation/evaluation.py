"""An encoder on a dataset of yours: right roles, exact search, metrics with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Encoder, Vectors
from ..errors import InputError
from .data import PairSet, RetrievalSet, read_rows, refuse
from .metrics import Ranking, Results, measure_pairs, measure_ranking
from .significance import NUM_RESAMPLES, Interval, find_intervals

SIMILARITY = "Retrieve semantically similar text"  # the official one for STS and pairs
DEPTH = 100  # documents of a ranking: what recall@100 needs
QUERY_BLOCK, DOCUMENT_BLOCK = 64, 8192  # what is compared at a time


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an encoder reached on a dataset: each metric with its interval, and every item."""

    dataset: str
    metrics: dict[str, Interval]
    results: Results
    settings: dict[str, Any]  # the encoder's contract, the instruction that was used, the seed

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-able values, without the items."""
        metrics = {name: one._asdict() for name, one in self.metrics.items()}
        items = {"dataset": self.dataset, "items": len(self.results.ids)}
        return {**items, "metrics": metrics, "settings": self.settings}


def evaluate(
    encoder: Encoder,
    dataset: PairSet | RetrievalSet,
    *,
    instruction: str | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Evaluation:
    """Return the metrics of a dataset, of cosines of whatever encoder.

    Pairs are queries on both sides, under the official instruction for similarity; queries of a
    retrieval set come under the encoder's own, documents without. `instruction` replaces either.
    """
    if isinstance(dataset, PairSet):
        instruction = SIMILARITY if instruction is None else instruction
        scores = score_pairs(encoder, dataset, instruction=instruction)
        results = measure_pairs(dataset, scores)
    else:
        ranking = rank_documents(encoder, dataset, instruction=instruction)
        results = measure_ranking(dataset, ranking)
    contract = encoder.contract.to_dict()
    used = contract["instruction"] if instruction is None else instruction
    return Evaluation(
        dataset.name,
        find_intervals(results, seed=seed, num_resamples=num_resamples),
        results,
        {"instruction": used, "contract": contract, "seed": seed, "num_resamples": num_resamples},
    )


def score_pairs(
    encoder: Encoder, dataset: PairSet, *, instruction: str = SIMILARITY
) -> npt.NDArray[np.float64]:
    """Return the cosine of each pair, (N,) float64; both sides are queries."""
    vectors = encoder.encode_queries([*dataset.first, *dataset.second], instruction=instruction)
    first, second = np.split(vectors.astype(np.float64), 2)
    return np.einsum("nw,nw->n", first, second)


def rank_documents(
    encoder: Encoder, dataset: RetrievalSet, *, instruction: str | None = None, depth: int = DEPTH
) -> Ranking:
    """Return for each query the `depth` nearest documents, every one compared, best first."""
    documents = encoder.encode_documents(list(dataset.documents.values()))
    queries = encoder.encode_queries(list(dataset.queries.values()), instruction=instruction)
    return rank_vectors(dataset, queries, documents, depth=depth)


def rank_vectors(
    dataset: RetrievalSet, queries: Vectors, documents: Vectors, *, depth: int = DEPTH
) -> Ranking:
    """Return the ranking of unit vectors, (Q, W) and (D, W) in the dataset's order, by cosine.

    Equal scores stand in the dataset's order.
    """
    names, ids = list(dataset.queries), list(dataset.documents)
    ranking: dict[str, list[tuple[str, float]]] = {}
    for n in range(0, len(queries), QUERY_BLOCK):
        # In float64, then rounded: equal texts get equal scores, wherever they stand.
        block = queries[n : n + QUERY_BLOCK].astype(np.float64)
        parts = [
            (block @ documents[m : m + DOCUMENT_BLOCK].T).astype(np.float32)
            for m in range(0, len(documents), DOCUMENT_BLOCK)
        ]
        scores = np.concatenate(parts, axis=1)  # (block, D)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        for name, row, places in zip(names[n:], scores, best, strict=False):
            ranking[name] = [(ids[m], float(row[m])) for m in places]
    return ranking


def write_results(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Write a .jsonl: dataset, id and values of every item; `read_results` reads it."""
    with path.open("w", encoding="utf-8") as file:
        for one in evaluations:
            columns = [values.tolist() for values in one.results.values.values()]
            for id_, *values in zip(one.results.ids, *columns, strict=True):
                row = {"dataset": one.dataset, "id": id_}
                row |= dict(zip(one.results.values, values, strict=True))
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_results(path: Path) -> dict[str, Results]:
    """Return the results that `write_results` wrote, by dataset; InputError if they are not."""
    faults: list[str] = []
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path, faults):
        found.setdefault(row.text("dataset"), []).append({**row.record, "id": row.text("id")})
    refuse(faults)
    results: dict[str, Results] = {}
    for name, rows in found.items():
        metrics = [metric for metric in rows[0] if metric not in {"dataset", "id"}]
        try:
            values = {one: np.array([row[one] for row in rows], np.float64) for one in metrics}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no file of results: {error!r}") from error
        results[name] = Results(tuple(row["id"] for row in rows), values, "label" in values)
    return results
