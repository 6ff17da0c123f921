"""The mteb door: MTEBEncoder, MTEBReranker, run_benchmark."""

from ..errors import needs

with needs("mteb", extra="mteb"):
    from .benchmark import BenchmarkScores, ScoreRow, run_benchmark
    from .models import MTEBEncoder, MTEBReranker

__all__ = ["BenchmarkScores", "MTEBEncoder", "MTEBReranker", "ScoreRow", "run_benchmark"]
