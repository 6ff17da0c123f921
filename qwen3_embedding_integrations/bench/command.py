"""The command line of `bench`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError

ModelOption = Annotated[
    str, typer.Option("--model", help="random (the 0.6B shape), tiny, a folder or a hub id.")
]
ModesOption = Annotated[
    str, typer.Option(help="Ours, with commas; peers take part in those of theirs that are alike.")
]
AgainstOption = Annotated[
    str,
    typer.Option(
        help="Peers, with commas: sentence-transformers, onnxruntime, openvino, llama-cpp. pip "
        "installs each in an environment of its own."
    ),
]
TextsOption = Annotated[int, typer.Option(help="Documents, of 3 to 1,024 tokens.")]
RoundsOption = Annotated[int, typer.Option(help="Alternating; the medians count.")]
QueriesOption = Annotated[int, typer.Option(help="Single queries in each round.")]
LengthsOption = Annotated[
    str, typer.Option(help="Ours is measured on these apart; default: 1 to 8,192 tokens.")
]
OutOption = Annotated[Path, typer.Option(help="Folder of bench-cpu.json, .svg and .png.")]
WorkOption = Annotated[
    Path | None, typer.Option(help="Keeps models and peers; default: removed at the end.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu; others are not measured yet.")]


def bench(
    model: ModelOption = "random",
    modes: ModesOption = "int8,bfloat16,float32",
    against: AgainstOption = "",
    texts: TextsOption = 96,
    rounds: RoundsOption = 3,
    queries: QueriesOption = 20,
    lengths: LengthsOption = "",
    out: OutOption = Path("benchmarks/results"),
    work_dir: WorkOption = None,
    device: DeviceOption = "cpu",
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
    command = shlex.join(["qwen3-embedding", *sys.argv[1:]])
    with Console(stderr=True).status("") as status:
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
