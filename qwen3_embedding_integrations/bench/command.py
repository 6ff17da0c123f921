"""The command line of `bench`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from ..options import err, out, say

if TYPE_CHECKING:
    from .options import BenchOptions


def bench(
    model: Annotated[
        str, typer.Option(help="random (the 0.6B shape), tiny, a folder or a hub id.")
    ] = "random",
    modes: Annotated[
        str,
        typer.Option(help="Ours, with commas; peers take part in those of theirs that are alike."),
    ] = "int8,bfloat16,float32",
    against: Annotated[
        str,
        typer.Option(
            help="Peers, with commas: sentence-transformers, onnxruntime, openvino, llama-cpp; pip "
            "installs each in an environment of its own."
        ),
    ] = "",
    texts: Annotated[int, typer.Option(help="Documents, of 3 to 1,024 tokens.")] = 96,
    rounds: Annotated[int, typer.Option(help="Alternating; the medians count.")] = 3,
    queries: Annotated[int, typer.Option(help="Single queries in each round.")] = 20,
    lengths: Annotated[
        str, typer.Option(help="Ours is measured on these apart; default: 1 to 8,192 tokens.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of bench-cpu.json, .svg and .png.")] = Path(
        "benchmarks/results"
    ),
    work_dir: Annotated[
        Path | None, typer.Option(help="Keeps models and peers; default: removed at the end.")
    ] = None,
) -> None:
    """Measure this processor's throughput and latency, beside other engines in the same run."""
    from .options import BenchOptions

    options = BenchOptions(
        model=model,
        modes=_split(modes),
        against=_split(against),
        num_texts=texts,
        num_rounds=rounds,
        num_queries=queries,
        lengths=tuple(_int(part) for part in _split(lengths)),
        out=out,
        work_dir=work_dir,
    )
    _run(options)


def _run(options: BenchOptions) -> None:
    """Print what was measured; exit with 1 where an engine of ours failed."""
    from rich.text import Text

    from .options import OURS
    from .run import NAME, run_bench
    from .tables import make_tables

    command = shlex.join(["qwen3-embedding", *sys.argv[1:]])
    with err.status("") as status:
        result = run_bench(options, command, lambda step: status.update(Text(step)))
    for table in make_tables(result):
        out.print(table)
    say(f"{options.out / NAME}.json, .svg, .png")
    if any("failed" in one for one in result["engines"] if one["engine"] == OURS):
        raise typer.Exit(1)


def _split(names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"lengths has {text!r}; give numbers, separated by commas") from error
