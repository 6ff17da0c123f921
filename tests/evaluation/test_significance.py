"""Intervals and paired tests beside scipy's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from qwen3_embedding_integrations import InputError
from qwen3_embedding_integrations.evaluation import Results, compare_paired, find_intervals

RNG = np.random.default_rng(7)
LABELS = RNG.integers(0, 2, 200).astype(float)
PAIRS = Results(
    tuple(map(str, range(200))),
    {"score": LABELS * 0.5 + RNG.standard_normal(200), "label": LABELS},
    True,
)


def queries(values: np.ndarray) -> Results:
    """Return results of queries with one metric."""
    return Results(tuple(map(str, range(len(values)))), {"ndcg@10": values}, False)


def test_intervals_of_means_are_scipys() -> None:
    """The interval of a mean over queries is scipy's percentile bootstrap, to sampling error."""
    values = RNG.beta(0.5, 0.5, 150)
    found = find_intervals(queries(values), num_resamples=20_000)["ndcg@10"]
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    width = expected.high - expected.low
    assert abs(found.low - expected.low) < 0.04 * width
    assert abs(found.high - expected.high) < 0.04 * width


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("average_precision", sklearn.metrics.average_precision_score),
        ("spearman", lambda labels, scores: scipy.stats.spearmanr(labels, scores).statistic),
    ],
)
def test_intervals_of_pairs_are_scipys(name, measure) -> None:
    """The interval of a metric that is no mean is scipy's too, pairs being drawn together."""
    found = find_intervals(PAIRS, num_resamples=20_000)[name]
    expected = scipy.stats.bootstrap(
        (PAIRS.values["label"], PAIRS.values["score"]),
        measure,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2_000,
        rng=1,
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(found.low - expected.low) < 0.1 * width
    assert abs(found.high - expected.high) < 0.1 * width


def test_a_seed_gives_the_same_intervals() -> None:
    """Intervals are the same for the same seed, and others for another."""
    assert find_intervals(PAIRS, seed=3) == find_intervals(PAIRS, seed=3)
    assert find_intervals(PAIRS, seed=3) != find_intervals(PAIRS, seed=4)


def test_a_setting_does_not_differ_from_itself() -> None:
    """Against itself every gain is 0 and p is 1."""
    for test in compare_paired(PAIRS, PAIRS).values():
        assert test == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("gain", [0.0, 0.03, 0.3])
def test_the_p_value_of_means_is_near_a_permutation_tests(gain: float) -> None:
    """Paired queries give the p-value of scipy's permutation test, nearly."""
    before = RNG.random(120)
    after = before + gain + 0.15 * RNG.standard_normal(120)
    found = compare_paired(queries(after), queries(before), num_resamples=20_000)["ndcg@10"]
    expected = scipy.stats.permutation_test(
        (after, before),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    )
    assert found.difference == pytest.approx((after - before).mean())
    assert abs(found.p_value - expected.pvalue) < 0.03
    assert found.low < found.difference < found.high


def test_pairing_sees_what_two_intervals_do_not() -> None:
    """A small gain on every query is certain, although the two intervals overlap."""
    before = RNG.random(100)
    after = before + 0.02
    test = compare_paired(queries(after), queries(before))["ndcg@10"]
    assert test.p_value == pytest.approx(2 / 2001)
    assert test.low > 0
    intervals = [find_intervals(queries(one))["ndcg@10"] for one in (after, before)]
    assert intervals[0].low < intervals[1].high


def test_other_items_are_refused() -> None:
    """Results of other queries, or of pairs labelled otherwise, cannot be compared in pairs."""
    with pytest.raises(InputError, match="other items"):
        compare_paired(queries(np.ones(3)), queries(np.ones(4)))
    with pytest.raises(InputError, match="other items"):
        compare_paired(PAIRS, queries(np.ones(200)))
    turned = replace(PAIRS, values={**PAIRS.values, "label": 1 - LABELS})
    with pytest.raises(InputError, match="other labels"):
        compare_paired(PAIRS, turned)
