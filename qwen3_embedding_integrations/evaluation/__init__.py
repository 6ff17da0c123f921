"""Quality measured on your own pairs and retrieval sets, with intervals and paired tests."""

from .compare import Comparison, compare
from .data import PairSet, RetrievalSet, read_dataset, read_pairs, read_retrieval
from .evaluation import (
    Evaluation,
    evaluate,
    rank_documents,
    rank_vectors,
    read_results,
    score_pairs,
    write_results,
)
from .lab import Setting, Trial
from .metrics import Ranking, Results, measure_pairs, measure_ranking
from .significance import Interval, PairedTest, compare_paired, find_intervals

__all__ = [
    "Comparison",
    "Evaluation",
    "Interval",
    "PairSet",
    "PairedTest",
    "Ranking",
    "Results",
    "RetrievalSet",
    "Setting",
    "Trial",
    "compare",
    "compare_paired",
    "evaluate",
    "find_intervals",
    "measure_pairs",
    "measure_ranking",
    "rank_documents",
    "rank_vectors",
    "read_dataset",
    "read_pairs",
    "read_results",
    "read_retrieval",
    "score_pairs",
    "write_results",
]
