"""run_benchmark: a public benchmark by name, resumed, beside the published scores."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import mteb
from mteb.benchmarks.benchmark import Benchmark
from mteb.cache import ResultCache

from ..contract import Encoder
from ..errors import ConfigError
from .models import MTEBEncoder

ALIASES = {"C-MTEB": "MTEB(cmn, v1)", "MTEB(Code)": "MTEB(Code, v1)"}  # beside mteb's own


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table, in points: a mean, a type of task, or a task."""

    name: str
    num_done: int  # tasks with a score
    num_tasks: int  # that the benchmark has; with fewer done, do not compare with `published`
    score: float | None
    published: list[float]  # in the order of `published_models`; empty where nothing was published


@dataclass(frozen=True)
class BenchmarkScores:
    """What a model reached in a benchmark, beside what Qwen3-Embedding's authors published."""

    benchmark: str
    model: str
    rows: list[ScoreRow]  # the means, then every type, then every task that was run
    failures: dict[str, str]  # tasks that could not be run, and why; run again, they are tried anew
    published_models: list[str]  # empty where nothing was published
    source: str  # where the published scores are from, and how they were made


def run_benchmark(
    encoder: Encoder,
    benchmark: str | Benchmark,
    *,
    tasks: Sequence[str] | None = None,
    output: str | Path = "mteb-results",
    show_progress: bool = False,
) -> BenchmarkScores:
    """Return the encoder's scores in a benchmark, beside the published ones of Qwen3-Embedding.

    `benchmark` is one of mteb's names, "C-MTEB" for its "MTEB(cmn, v1)", or a Benchmark of your
    own; `tasks` are the names of some of its tasks. Every result is kept under `output`, in mteb's
    layout: what stands there for the same weights and options is not computed again. A task that
    fails is named, and the others go on. Raises ConfigError for an unknown benchmark or task.
    """
    benchmark = _find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    types = {task.metadata.name: str(task.metadata.type) for task in benchmark.tasks}
    for task in tasks or ():
        if task not in types:
            near = get_close_matches(task, types) or sorted(types)[:10]
            raise ConfigError(f"task {task!r} is not in {benchmark.name}; near: {', '.join(near)}")
    chosen = [task for task in benchmark.tasks if not tasks or task.metadata.name in tasks]
    model: Any = MTEBEncoder(encoder)  # mteb's protocol fixes a constructor too, never called here
    results = mteb.evaluate(
        model,
        chosen,
        cache=ResultCache(output),
        raise_error=False,
        # Rows handed over; tokens decide what shares a forward.
        encode_kwargs={"batch_size": 1024, "show_progress_bar": show_progress},
        show_progress_bar=show_progress,
        co2_tracker=False,
    )
    done = results.select_tasks(chosen).task_results
    scores = {one.task_name: 100 * one.get_score() for one in done}
    table = json.loads((files(__package__ or "") / "published.json").read_text("utf-8"))
    published = table["benchmarks"].get(benchmark.name, {"scores": {}})
    return BenchmarkScores(
        benchmark.name,
        encoder.contract.model,
        _rows(types, {task: scores[task] for task in sorted(scores)}, published["scores"]),
        {error.task_name: error.exception for error in results.exceptions or ()},
        table["models"] if published["scores"] else [],
        f"{published['source']}: {table['protocol']}" if published["scores"] else "",
    )


def _find_benchmark(name: str) -> Benchmark:
    try:
        return mteb.get_benchmark(ALIASES.get(name, name))
    except KeyError as error:
        raise ConfigError(
            f"mteb has no benchmark {name!r}: {error.args[0]} Try C-MTEB, MTEB(eng, v2), "
            "MTEB(Multilingual, v2), MTEB(Code, v1)"
        ) from error


def _rows(
    types: dict[str, str], scores: dict[str, float], published: dict[str, list[float]]
) -> list[ScoreRow]:
    kinds = sorted({*types.values()})
    tasks_of = {kind: [task for task, one in types.items() if one == kind] for kind in kinds}

    def row(name: str, tasks: Collection[str], values: list[float]) -> ScoreRow:
        num_done = sum(task in scores for task in tasks)
        mean = fmean(values) if values else None
        return ScoreRow(name, num_done, len(tasks), mean, published.get(name, []))

    of_kinds = [
        row(kind, tasks, [scores[task] for task in tasks if task in scores])
        for kind, tasks in tasks_of.items()
    ]
    means = [one.score for one in of_kinds if one.score is not None]
    return [
        row("Mean (Task)", types, [*scores.values()]),
        row("Mean (TaskType)", types, means),
        *of_kinds,
        *(row(task, [task], [score]) for task, score in scores.items()),
    ]
