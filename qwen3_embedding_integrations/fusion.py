"""Two rankings made one: by their scores, each in its own spread, or by their ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

RANK_CONSTANT = 60  # of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (SIGIR 2009)

Ranking = Sequence[tuple[str, float]]  # (id, score), best first


def fuse_scores(
    dense: Ranking, keywords: Ranking, *, dense_weight: float
) -> list[tuple[str, float]]:
    """Return (id, score) of both rankings together, best first.

    A score counts by how far it is above the ranking's last one, in standard deviations of the
    ranking; what a ranking does not hold counts as its last. So a ranking with one clear winner
    says more than one whose scores are all alike, which ranks cannot tell.
    """
    return _add(
        _weigh(dense, _spread(dense), dense_weight),
        _weigh(keywords, _spread(keywords), 1 - dense_weight),
    )


def fuse_ranks(
    dense: Ranking, keywords: Ranking, *, dense_weight: float
) -> list[tuple[str, float]]:
    """Return (id, score) of both rankings together, best first, by reciprocal rank fusion.

    The n-th of a ranking counts weight / (60 + n), whatever its score.
    """
    return _add(
        _weigh(dense, _reciprocal_ranks(dense), dense_weight),
        _weigh(keywords, _reciprocal_ranks(keywords), 1 - dense_weight),
    )


def _spread(ranking: Ranking) -> list[float]:
    """Return the scores above the last one, in standard deviations; all 1 where all are equal."""
    scores = [score for _, score in ranking]
    if not scores:
        return []
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if deviation <= 1e-9 * max(1.0, abs(mean)):
        return [1.0] * len(scores)
    return [(score - scores[-1]) / deviation for score in scores]


def _reciprocal_ranks(ranking: Ranking) -> list[float]:
    return [1 / (RANK_CONSTANT + n) for n in range(1, len(ranking) + 1)]


def _weigh(ranking: Ranking, parts: list[float], weight: float) -> list[tuple[str, float]]:
    return [(id_, weight * part) for (id_, _), part in zip(ranking, parts, strict=True)]


def _add(dense: Ranking, keywords: Ranking) -> list[tuple[str, float]]:
    totals = dict(dense)
    for id_, part in keywords:
        totals[id_] = totals.get(id_, 0.0) + part
    # Equal sums keep the order they came in, so that every page sees the same order.
    return sorted(totals.items(), key=lambda item: -item[1])
