"""The verb `evaluate`: quality on your own data, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..core.config import EncoderConfig
from ..errors import InputError
from ..options import INDEX, JsonOption, Options, check_place, err, out, print_json, takes

if TYPE_CHECKING:
    from ..evaluation import Evaluation, PairedTest


@takes(*INDEX, "max_length", "on_too_long", "on_empty")
def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(help="Pairs (.tsv, .csv, .jsonl), BEIR folders, or queries (.jsonl)."),
    ],
    options: Options,
    split: Annotated[str | None, typer.Option(help="Of retrieval sets; default: test.")] = None,
    scale: Annotated[float | None, typer.Option(help="The highest label of pairs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    per_query: Annotated[
        Path | None, typer.Option(help="A .jsonl to write: every query or pair.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier run's --per-query: tested against, in pairs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure quality on your pairs and retrieval sets, with 95% intervals.

    Pairs have the columns sentence1, sentence2 and label (or score); folders BEIR's layout.
    """
    from ..evaluation import compare_paired, evaluate, read_dataset, read_results, write_results
    from ..sharing import shared_encoder

    if per_query:
        check_place(per_query)
    on_empty = options.get("on_empty", "error")
    sets = [read_dataset(path, scale=scale, split=split, on_empty=on_empty) for path in data]
    if len({one.name for one in sets}) < len(sets):
        raise InputError(f"two sets have one name: {', '.join(one.name for one in sets)}")
    before = read_results(baseline) if baseline else {}
    if baseline and (missing := [one.name for one in sets if one.name not in before]):
        raise InputError(f"{baseline} holds no results of {', '.join(missing)}, only {[*before]}")
    with err.status("loading the model"):
        encoder = shared_encoder(EncoderConfig.from_options(**options))
    how: Options = {"instruction": options.get("instruction"), "seed": seed}
    found = [evaluate(encoder, one, **how) for one in sets]
    pairs = [(one, before[one.dataset]) for one in found if baseline]
    tests = {one.dataset: compare_paired(one.results, was, seed=seed) for one, was in pairs}
    if per_query:
        write_results(per_query, found)
    if as_json:
        gains = {name: {m: t._asdict() for m, t in test.items()} for name, test in tests.items()}
        print_json([{**one.to_dict(), "gains": gains.get(one.dataset)} for one in found])
    else:
        out.print(_table(found, tests))


def _table(found: list[Evaluation], tests: dict[str, dict[str, PairedTest]]) -> Table:
    table = Table("set", "items", "metric", "value", "95% interval")
    for name in ("gain", "95% interval", "p") if tests else ():
        table.add_column(name)
    for one in found:
        for metric, (value, low, high) in one.metrics.items():
            row = [f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
            if test := tests.get(one.dataset, {}).get(metric):
                row += [f"{test.difference:+.4f}", f"{test.low:+.4f} to {test.high:+.4f}"]
                row.append(f"{test.p_value:.4f}")
            table.add_row(Text(one.dataset), f"{len(one.results.ids):,}", metric, *row)
        table.add_section()
    return table
