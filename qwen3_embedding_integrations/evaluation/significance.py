"""How sure a metric is: bootstrap intervals, and paired tests between two settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..core.config import check_range
from ..errors import InputError
from .metrics import Numbers, Results

NUM_RESAMPLES = 2000
QUANTILES = (0.025, 0.975)  # of a 95% interval
MAX_CELLS = 2_000_000  # of weights in memory at a time


class Interval(NamedTuple):
    """A metric, and between which values 95% of its resamples lie."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """How much a metric gained over a baseline on the same items, and how surely."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided


def find_intervals(
    results: Results, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Interval]:
    """Return every metric with its percentile bootstrap interval, the items being drawn anew."""
    values = results.metrics(np.ones((1, len(results.ids))))
    drawn = [results.metrics(one) for one in _resample(len(results.ids), seed, num_resamples)]
    return {
        name: Interval(float(value), *_between(np.concatenate([one[name] for one in drawn]), value))
        for name, (value,) in values.items()
    }


def compare_paired(
    results: Results, baseline: Results, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, PairedTest]:
    """Return for every metric the gain over a baseline, with its interval and p-value.

    A paired bootstrap: each resample holds the same items of both, and the p-value is twice the
    share of resamples on the other side of 0, at least 2 / (num_resamples + 1). Raises InputError
    if the items are not the same.
    """
    labels, others = (one.values.get("label", np.empty(0)) for one in (results, baseline))
    if results.ids != baseline.ids or not np.array_equal(labels, others):
        raise InputError("the baseline is of other items, or other labels: not to be paired")
    num_items = len(results.ids)
    values = _gains(results, baseline, np.ones((1, num_items)))
    drawn = [_gains(results, baseline, one) for one in _resample(num_items, seed, num_resamples)]
    tests: dict[str, PairedTest] = {}
    for name, (value,) in values.items():
        gains = np.concatenate([one[name] for one in drawn])
        beyond = min(int((gains <= 0).sum()), int((gains >= 0).sum()))
        p_value = min(1.0, 2 * (beyond + 1) / (num_resamples + 1))
        tests[name] = PairedTest(float(value), *_between(gains, value), p_value)
    return tests


def _gains(results: Results, baseline: Results, weights: Numbers) -> dict[str, Numbers]:
    ours, theirs = results.metrics(weights), baseline.metrics(weights)
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def _resample(num_items: int, seed: int, num_resamples: int) -> Iterator[Numbers]:
    check_range("num_resamples", num_resamples, 1, 1_000_000)
    rng = np.random.default_rng(seed)
    block = max(1, MAX_CELLS // num_items)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(0, num_items, (size, num_items))
        drawn += num_items * np.arange(size)[:, None]  # each resample counts apart
        counts = np.bincount(drawn.ravel(), minlength=size * num_items)
        yield counts.reshape(size, num_items).astype(np.float64)


def _between(drawn: Numbers, value: float) -> tuple[float, float]:
    # Without NaN: a resample of few pairs may hold one label only, and so may all of them.
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known if len(known) else [value], QUANTILES)
    return float(low), float(high)
