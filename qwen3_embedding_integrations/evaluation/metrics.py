"""Results of pairs and of queries, and their metrics: of all, and of any resample of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError, needs
from .data import PairSet, RetrievalSet

Numbers = npt.NDArray[np.float64]
Ranking = Mapping[str, Sequence[tuple[str, float]]]  # query → (document, score), best first
MEASURES = {
    "ndcg@10": "ndcg_cut.10",
    "recall@10": "recall.10",
    "recall@100": "recall.100",
    "mrr@10": "recip_rank",
}


@dataclass(frozen=True, slots=True)
class Results:
    """What a dataset's items came to: pairs their "score" and "label", queries their metrics."""

    ids: tuple[str, ...]
    values: Mapping[str, Numbers]  # (N,) each
    is_pairs: bool

    def metrics(self, weights: Numbers) -> dict[str, Numbers]:
        """Return each metric, (B,) float64, if item n stood `weights[b, n]` times in the dataset.

        Of queries the means. Of pairs Spearman's correlation and, for labels of 0 and 1, average
        precision, and accuracy and F1 at the best threshold for each; equal scores lie on one side
        of a threshold, as in scikit-learn. Computed here, since a library would take one resample
        at a time. NaN where all labels of a resample are the same; where all scores are, which tell
        nothing apart, Spearman's correlation is 0.
        """
        if not self.is_pairs:
            totals = weights.sum(axis=1)
            return {name: weights @ values / totals for name, values in self.values.items()}
        scores, labels = self.values["score"], self.values["label"]
        spearman = {"spearman": _spearman(scores, labels, weights)}
        is_binary = set(labels.tolist()) <= {0.0, 1.0}
        return {**_classify(scores, labels, weights), **spearman} if is_binary else spearman


def measure_pairs(dataset: PairSet, scores: npt.ArrayLike) -> Results:
    """Return the results of scores, (N,), one for each pair in order."""
    values, labels = np.asarray(scores, np.float64), np.array(dataset.labels)
    if len(set(dataset.labels)) < 2:
        raise InputError(f"every label of {dataset.name} is {labels[0]:g}: nothing to tell apart")
    if values.shape != labels.shape or not np.isfinite(values).all():
        raise InputError(f"{dataset.name} wants {len(labels)} finite scores; got {values.shape}")
    return Results(tuple(map(str, dataset.rows)), {"score": values, "label": labels}, True)


def measure_ranking(dataset: RetrievalSet, ranking: Ranking) -> Results:
    """Return nDCG@10, recall@10, recall@100 and MRR@10 of each query, by trec_eval's code.

    The order of a ranking counts, not its scores; a document's first place; a query without
    documents has 0.
    """
    with needs("pytrec_eval", extra="evaluate"):
        import pytrec_eval
    ids = tuple(dataset.queries)
    # trec_eval sorts by score and ties by id: falling scores keep the order. It wants a document.
    run: dict[str, dict[str, float]] = {}
    for id_ in ids:
        documents = dict.fromkeys(one[0] for one in ranking.get(id_) or [("", 0.0)])
        run[id_] = {document: -float(rank) for rank, document in enumerate(documents)}
    answers = {id_: dataset.relevant[id_] for id_ in ids}
    found = pytrec_eval.RelevanceEvaluator(answers, {*MEASURES.values()}).evaluate(run)
    values = {
        name: np.array([found[id_][measure.replace(".", "_")] for id_ in ids])
        for name, measure in MEASURES.items()
    }
    values["mrr@10"] *= values["mrr@10"] >= 1 / 10  # it looks at the whole ranking
    return Results(ids, values, False)


def _classify(scores: Numbers, labels: Numbers, weights: Numbers) -> dict[str, Numbers]:
    order, starts = _groups(-scores)
    true = np.cumsum(_sums(weights * labels, order, starts), axis=1)  # (B, thresholds)
    found = np.cumsum(_sums(weights, order, starts), axis=1)
    positives, total = true[:, -1:], found[:, -1:]
    right = 2 * true + total - positives - found  # true positives and true negatives
    best = np.maximum(right.max(axis=1), (total - positives)[:, 0])  # or no pair is positive
    with np.errstate(invalid="ignore"):  # the best groups, or all positives, are not in a resample
        gained = np.diff(true / positives, axis=1, prepend=0.0)
        precision = np.where(found > 0, true / found, 0.0)
        return {
            "accuracy": best / total[:, 0],
            "f1": (2 * true / (found + positives)).max(axis=1),
            "average_precision": (gained * precision).sum(axis=1),
        }


def _spearman(scores: Numbers, labels: Numbers, weights: Numbers) -> Numbers:
    first, second = _deviations(scores, weights), _deviations(labels, weights)
    shared = (weights * first * second).sum(axis=1)
    spreads = [(weights * ranks**2).sum(axis=1) for ranks in (first, second)]
    with np.errstate(invalid="ignore"):  # all labels of a resample are the same
        found = shared / np.sqrt(spreads[0] * spreads[1])
    return np.where((spreads[0] == 0) & (spreads[1] > 0), 0.0, found)


def _deviations(values: Numbers, weights: Numbers) -> Numbers:
    """Return each item's rank less the mean rank, (B, N); equal values share theirs."""
    order, starts = _groups(values)
    counts = _sums(weights, order, starts)
    ranks = np.cumsum(counts, axis=1) - (counts - 1) / 2
    group = np.empty(len(values), np.intp)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    return ranks[:, group] - (weights.sum(axis=1, keepdims=True) + 1) / 2


def _groups(values: Numbers) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the order of the values, and where in it each group of equal ones starts."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.diff(values[order], prepend=-math.inf) > 0)


def _sums(weights: Numbers, order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp]) -> Numbers:
    return np.add.reduceat(weights[:, order], starts, axis=1)  # (B, groups)
