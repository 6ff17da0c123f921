"""The verb `compare`: settings on your own labelled queries, and which to take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..core.config import DEFAULT_RERANKER, EncoderConfig
from ..options import (
    JsonOption,
    Options,
    check_place,
    given,
    out,
    print_json,
    say,
    takes,
)

AXES = (
    "quantization", "chunk_tokens", "dimensions", "storage", "dense_weight", "rerank_depth",
)  # fmt: skip


@takes("model", "lora", "device", "dtype", "revision", "base_url", "api_key_env", "on_empty")
def compare(
    data: Annotated[Path, typer.Argument(help="A folder in BEIR's layout, or queries (.jsonl).")],
    options: Options,
    instruction: Annotated[
        list[str] | None, typer.Option(help="Again for each; default: web search, en and zh.")
    ] = None,
    dimensions: Annotated[
        str | None, typer.Option(help="Default: the model's, its half, quarter, …")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="float32,float16,int8.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none,int8 or none,fp8.")] = None,
    chunk_tokens: Annotated[str | None, typer.Option(help="Of pieces: none,256,512.")] = None,
    dense_weight: Annotated[
        str | None, typer.Option(help="Beside keywords: none (vectors alone),0.25,0.5.")
    ] = None,
    rerank_depth: Annotated[str | None, typer.Option(help="Candidates: 0,20,50.")] = None,
    reranker: Annotated[str, typer.Option(help="Hub id or folder.")] = DEFAULT_RERANKER,
    split: Annotated[str | None, typer.Option(help="Of the queries; default: test.")] = None,
    metric: Annotated[str, typer.Option(help="What counts.")] = "ndcg@10",
    chart: Annotated[Path, typer.Option(help="Writes .svg and .png.")] = Path("compare"),
    as_json: JsonOption = False,
) -> None:
    """Measure every combination of these values on your queries; recommend the cheapest good one.

    Options take several values, with commas. Prints a table and a contract to paste, draws a chart.
    """
    from ..evaluation import compare, read_retrieval
    from ..evaluation.chart import chart_files, draw
    from ..sharing import shared_reranker

    check_place(chart_files(chart)[0])
    values = given(locals(), *AXES)
    grid = {name: [_value(word.strip()) for word in values[name].split(",")] for name in values}
    grid |= {"instruction": instruction} if instruction else {}
    config = EncoderConfig.from_options(**options)
    dataset = read_retrieval(data, split=split, on_empty=config.on_empty)
    second = shared_reranker(reranker) if any(grid.get("rerank_depth", ())) else None
    found = compare(config, dataset, grid, reranker=second, metric=metric)
    draw(found, chart)
    rows = found.rows()
    if as_json:
        facts = {"caption": found.caption, "instructions": found.instructions, "rows": rows}
        print_json({**facts, "contract": found.contract.to_dict(), "snippet": found.snippet()})
        return
    table = Table(*rows[0], caption=Text(found.caption), caption_justify="left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    out.print(table)
    texts = "".join(f"{name}: {text}\n" for name, text in found.instructions.items())
    say(f"{texts}\n{found.snippet()}")


def _value(word: str) -> str | float | None:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return None if word == "none" else word


def _cell(value: Any) -> str:
    return " ".join(f"{one:.3f}" for one in value) if isinstance(value, tuple) else str(value)
