"""The verb `mteb`: a public benchmark, resumed, beside the published scores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.config import EncoderConfig
from ..options import MACHINE, JsonOption, Options, err, out, print_json, takes

if TYPE_CHECKING:
    from ..mteb import BenchmarkScores


@takes("model", "dimensions", "max_length", *MACHINE, "revision", "lora")
def mteb(
    benchmark: Annotated[
        str, typer.Argument(help="C-MTEB, 'MTEB(eng, v2)', 'MTEB(Multilingual, v2)', …")
    ],
    options: Options,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Only this one; may be given again.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Where results are kept; what stands there is not run again.")
    ] = Path("mteb-results"),
    as_json: JsonOption = False,
) -> None:
    """Run a public benchmark of mteb, and set the scores beside the published ones.

    May be killed and run again: it goes on. Exits with 1 if a task failed.
    """
    from ..mteb import run_benchmark
    from ..sharing import shared_encoder

    encoder = shared_encoder(EncoderConfig.from_options(**options, on_empty="embed"))
    scores = run_benchmark(
        encoder, benchmark, tasks=tasks, output=output, show_progress=err.is_terminal
    )
    print_json(asdict(scores)) if as_json else print_scores(scores)
    if scores.failures:
        raise typer.Exit(1)


def print_scores(scores: BenchmarkScores) -> None:
    """Print the table, and what could not be run."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text  # a model's name may hold what rich reads as markup

    table = Table("", "tasks", box=SIMPLE_HEAD, title=scores.benchmark, title_justify="left")
    for name in (scores.model, *scores.published_models):
        table.add_column(Text(name.rsplit("/", 1)[-1]), justify="right", overflow="fold")
    for row in scores.rows:
        reached = "" if row.score is None else f"{row.score:.2f}"
        is_part = 0 < row.num_done < row.num_tasks
        published = [f"{score:.2f}" for score in row.published]
        done = f"{row.num_done}/{row.num_tasks}"
        table.add_row(row.name, done, f"({reached})" if is_part else reached, *published)
    out.print(table)
    if any(0 < row.num_done < row.num_tasks for row in scores.rows):
        out.print("(in brackets: a part of the tasks, not to be compared with what was published)")
    if scores.source:
        out.print(Text(f"published: {scores.source}"))
    for task, reason in scores.failures.items():
        out.print(Text(f"{task} failed: {reason}", style="red"))
