"""The command line of `bench`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError

Names = Annotated[str, typer.Option(help="Separated by commas.")]


def bench(
    model: Annotated[
        str, typer.Option(help="random (the 0.6B shape), tiny, a folder, a hub id.")
    ] = "random",
    modes: Annotated[
        str, typer.Option(help="Among int8,bfloat16,float32; peers take part in those they have.")
    ] = "int8,bfloat16,float32",
    against: Annotated[
        str,
        typer.Option(
            help="Among sentence-transformers,onnxruntime,openvino,"
            "llama-cpp; pip installs each in an environment of its own."
        ),
    ] = "",
    texts: Annotated[int, typer.Option(help="Documents, of 3 to 1,024 tokens.")] = 96,
    rounds: Annotated[int, typer.Option(help="Alternating; the medians count.")] = 3,
    queries: Annotated[int, typer.Option(help="Single queries in each round.")] = 20,
    lengths: Annotated[
        str,
        typer.Option(
            help="Tokens of the texts that ours is measured on apart; default 1 to 8,192."
        ),
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of bench-cpu.json, .svg and .png.")] = Path(
        "benchmarks/results"
    ),
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Kept: the random model, the peers, what "
            "they made of a model. Default: removed at the end."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu; others are not measured yet.")] = "cpu",
) -> None:
    """Measure this machine's throughput and latency, beside other engines in the same run."""
    from rich.console import Console
    from rich.text import Text

    from .options import OURS, BenchOptions
    from .run import NAME, run_bench
    from .tables import make_tables

    options = BenchOptions(
        model=model,
        modes=_split(modes),
        against=_split(against),
        device=device,
        num_texts=texts,
        num_rounds=rounds,
        num_queries=queries,
        lengths=tuple(_int(part) for part in _split(lengths)) or None,
        out=out,
        work_dir=work_dir,
    )
    console = Console()
    with Console(stderr=True).status("") as status:
        command = shlex.join(["qwen3-embedding", *sys.argv[1:]])
        result = run_bench(options, command, lambda step: status.update(Text(step)))
    for table in make_tables(result):
        console.print(table)
    console.print(f"{out / NAME}.json, .svg, .png", markup=False)
    if any("failed" in one for one in result["engines"] if one["engine"] == OURS):
        raise typer.Exit(1)


def _split(names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"lengths has {text!r}; give numbers, separated by commas") from error
