"""The mteb door: MTEBEncoder, MTEBReranker, run_benchmark."""

from ..errors import MissingDependencyError

try:
    from .benchmark import BenchmarkScores, ScoreRow, run_benchmark
    from .models import MTEBEncoder, MTEBReranker
except ImportError as error:
    raise MissingDependencyError("mteb", extra="mteb", reason=error) from error

__all__ = ["BenchmarkScores", "MTEBEncoder", "MTEBReranker", "ScoreRow", "run_benchmark"]
