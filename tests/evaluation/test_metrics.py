"""Metrics against their definitions, scikit-learn and scipy; rankings against plain search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evaluation import differences, plain_metrics, plain_query
from qwen3_embedding_integrations import CachedEncoder, InputError, MemoryStore, Qwen3Encoder
from qwen3_embedding_integrations.evaluation import (
    PairSet,
    RetrievalSet,
    compare_paired,
    evaluate,
    find_intervals,
    measure_pairs,
    measure_ranking,
    rank_documents,
    rank_vectors,
    read_pairs,
    read_retrieval,
    score_pairs,
)
from tests.evaluation.sets import DATA, write_help

TOLERANCE = 1e-6


def pairs(labels: list[float]) -> PairSet:
    """Return a set of as many pairs."""
    texts = tuple(map(str, range(len(labels))))
    return PairSet("pairs", texts, texts, tuple(labels), 5.0, tuple(range(len(labels))))


@pytest.mark.parametrize("name", ["pairs.tsv", "graded.jsonl"])
def test_pairs_have_the_metrics_of_their_definitions(tiny: Qwen3Encoder, name: str) -> None:
    """Every metric of the committed pairs equals one computed threshold by threshold."""
    dataset = read_pairs(DATA / name)
    evaluation = evaluate(tiny, dataset, num_resamples=50)
    off = differences(evaluation, plain_metrics(tiny, dataset))
    assert max(off.values()) <= TOLERANCE, off
    assert ("f1" in off) == (name == "pairs.tsv")


def test_retrieval_has_the_metrics_of_its_definitions(tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """Every metric of the committed queries equals one computed document by document."""
    dataset = read_retrieval(write_help(tmp_path / "help"))
    evaluation = evaluate(CachedEncoder(tiny, MemoryStore()), dataset, num_resamples=50)
    off = differences(evaluation, plain_metrics(tiny, dataset))
    assert max(off.values()) <= TOLERANCE, off
    assert evaluation.metrics["ndcg@10"].value > 0.5


def test_roles_and_instructions(tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """Pairs are queries on both sides; documents of a retrieval set carry no instruction."""
    dataset = read_pairs(DATA / "graded.jsonl")
    vectors = [
        tiny.encode_queries(side, instruction="Same event?")
        for side in (dataset.first, dataset.second)
    ]
    expected = (vectors[0].astype(np.float64) * vectors[1]).sum(axis=1)
    found = score_pairs(tiny, dataset, instruction="Same event?")
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - score_pairs(tiny, dataset)).max() > 1e-3
    retrieval = read_retrieval(write_help(tmp_path / "help"))
    ranking = rank_documents(tiny, retrieval, instruction="Same event?", depth=3)
    queries = tiny.encode_queries(list(retrieval.queries.values()), instruction="Same event?")
    scores = queries @ tiny.encode_documents(list(retrieval.documents.values())).T
    ids = list(retrieval.documents)
    for row, hits in zip(scores, ranking.values(), strict=True):
        assert [id_ for id_, _ in hits] == [ids[n] for n in np.argsort(-row)[:3]]
        assert np.abs(np.sort(row)[::-1][:3] - [score for _, score in hits]).max() < 1e-5


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=40
    ).filter(lambda items: {label for _, label, times in items if times} == {0, 1})
)
def test_weighted_metrics_are_those_of_repeated_items(items: list[tuple[int, int, int]]) -> None:
    """A pair of weight three counts as three pairs, ties included, for scikit-learn and scipy."""
    scores, labels, times = (np.array(column) for column in zip(*items, strict=True))
    results = measure_pairs(pairs(labels.tolist()), scores)
    found = {name: one[0] for name, one in results.metrics(times[None].astype(float)).items()}
    scores, labels = np.repeat(scores, times), np.repeat(labels, times)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, scores)
    thresholds = [*set(scores.tolist()), 9]
    expected = {
        "average_precision": sklearn.metrics.average_precision_score(labels, scores),
        "f1": max(
            2 * p * r / (p + r) if p + r else 0 for p, r in zip(precision, recall, strict=True)
        ),
        "accuracy": max(((scores >= one) == labels).mean() for one in thresholds),
    }
    is_constant = len(set(scores.tolist())) == 1
    statistic = 0.0 if is_constant else scipy.stats.spearmanr(scores, labels).statistic
    expected["spearman"] = statistic
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@given(
    st.lists(st.integers(0, 11), max_size=16),
    st.dictionaries(st.integers(0, 11), st.integers(-1, 3), min_size=1),
)
def test_a_ranking_from_elsewhere_is_measured_in_its_order(
    order: list[int], grades: dict[int, int]
) -> None:
    """Any ranking can be measured: equal scores keep its order, repeats count once, none is 0."""
    ids = [f"d{n}" for n in range(12)]
    answers = {"q": {ids[n]: grade for n, grade in grades.items()}}
    dataset = RetrievalSet("set", dict.fromkeys(ids, "text"), {"q": "query"}, answers)
    ranked = [ids[n] for n in order]
    found = measure_ranking(dataset, {"q": [(id_, 1.0) for id_ in ranked]})
    for name, value in plain_query([*dict.fromkeys(ranked)], answers["q"]).items():
        assert found.values[name][0] == pytest.approx(value, abs=TOLERANCE), name


def test_equal_documents_rank_in_the_datasets_order() -> None:
    """Documents with one vector get one score, wherever they stand, and keep their order."""
    rng = np.random.default_rng(0)
    documents = np.repeat(rng.standard_normal((3, 64)).astype(np.float32), 7, axis=0)
    documents = documents[np.argsort(np.tile(np.arange(7), 3), kind="stable")]  # a b c a b c …
    ids = [f"d{n:02}" for n in range(21)]
    dataset = RetrievalSet("set", dict.fromkeys(ids, ""), {"q": ""}, {"q": {"d00": 1}})
    ranked = rank_vectors(dataset, documents[:1], documents, depth=7)["q"]
    assert ranked == [(id_, ranked[0][1]) for id_ in ids[::3]]


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 1, 2, 3]], ids=["binary", "graded"])
def test_constant_scores_correlate_with_nothing(labels: list[float]) -> None:
    """Scores that are all the same have the correlation 0, as has its interval, and a gain."""
    results = measure_pairs(pairs(labels), [0.5] * 4)
    assert find_intervals(results)["spearman"] == (0.0, 0.0, 0.0)
    better = measure_pairs(pairs(labels), labels)
    assert compare_paired(better, results)["spearman"].difference == pytest.approx(1.0)


def test_no_interval_is_nan() -> None:
    """Where all resamples hold one label only, the interval is the value."""
    results = measure_pairs(pairs([0, 1]), [0.1, 0.9])
    found = [find_intervals(results, num_resamples=1, seed=seed) for seed in range(8)]
    assert np.isfinite([list(one.values()) for one in found]).all(), found


def test_pairs_that_cannot_be_measured_are_refused() -> None:
    """One label for all pairs, other than one score each, and NaN are InputErrors."""
    with pytest.raises(InputError, match="every label of pairs is 1"):
        measure_pairs(pairs([1, 1]), [0.5, 0.6])
    for scores in ([0.5], [0.5, float("nan")]):
        with pytest.raises(InputError, match="pairs wants 2 finite scores"):
            measure_pairs(pairs([0, 1]), scores)
