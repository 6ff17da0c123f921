"""The tables of a result, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .options import OURS

Result = dict[str, Any]
Rows = Iterable[Sequence[str]]


def make_tables(result: Result) -> Iterator[Table]:
    """Yield the machine, the documents, the queries, and for ours the lengths and the stages."""
    measured = [one for one in result["engines"] if "failed" not in one]
    ours = [one for one in measured if one["engine"] == OURS]
    rates, tokens = result["gemm_gflops"], result["query_tokens"]
    yield _table(
        f"{result['processor']}, {result['cores']} cores, "
        f"{result['bandwidth_gb_s']:.1f} GB/s from memory",
        ["GFLOP/s", *(f"{rows} rows" for rows in next(iter(rates.values())))],
        [[name, *(f"{rate:.0f}" for rate in by_rows.values())] for name, by_rows in rates.items()],
    )
    yield _table(
        f"{result['num_documents']} documents, {result['num_tokens']:,} tokens",
        ("engine", "batch", "tokens/s", "of GEMM", "cosine, least", "MB, at peak", "load"),
        map(_documents_row, result["engines"]),
    )
    yield _table(
        f"One query: {tokens['own']} tokens after an instruction of {tokens['before']}; "
        f"the int8 weights are read once in {result['weight_read_ms']:.1f} ms",
        ("engine", "ms", "weight reads", "ms from string", f"{result['num_concurrent']} at once"),
        map(_query_row, measured),
    )
    if ours:
        yield _table(
            "Texts of one length: tokens/s, MB at peak",
            ["length", *map(_name, ours)],
            map(_length_row, *(one["lengths"] for one in ours)),
        )
        yield _table(
            "One forward of 512 tokens on one thread, ms",
            ["stage", *map(_name, ours)],
            (_stage_row(stage, ours) for stage in ours[0]["stages"]["stages_ms"]),
        )


def _documents_row(one: Result) -> list[str]:
    if "failed" in one:
        return [_name(one), "", f"failed: {one['failed']}"]
    share, cosine = one["gemm_share"], one["cosine"]
    return [
        _name(one),
        str(one["batch_size"] or "own"),
        _spread(one["documents_tokens_per_s"]),
        "" if share is None else f"{share:.0%}",
        f"{cosine['mean']:.5f} {cosine['min']:.5f}",
        f"{_megabytes(one['resident_bytes'])} {_megabytes(one['peak_resident_bytes'])}",
        f"{one['load_s']:.1f} s",
    ]


def _query_row(one: Result) -> list[str]:
    row = [_name(one), _spread(one["query_latency_ms"]), f"{one['query_in_weight_reads']:.2f}"]
    if one["engine"] == OURS:
        speedup = one["concurrent_speedup"]["median"]
        row += [_spread(one["query_from_string_ms"]), f"{speedup:.1f}x the rate"]
    return row


def _length_row(*entries: Result) -> list[str]:
    """Return one length's row; there is an entry for each of our modes."""
    cells = [
        f"{_number(entry['tokens_per_s']['median'])}  {_megabytes(entry['peak_resident_bytes'])}"
        for entry in entries
    ]
    return [f"{entries[0]['length']:,}", *cells]


def _stage_row(stage: str, ours: list[Result]) -> list[str]:
    all_ms = [one["stages"]["stages_ms"] for one in ours]
    return [stage, *(f"{ms[stage]:.1f}  {ms[stage] / sum(ms.values()):.0%}" for ms in all_ms)]


def _table(title: str, columns: Iterable[str], rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "engine")
    for row in rows:
        table.add_row(*row)
    return table


def _name(one: Result) -> str:
    return f"{one['engine']} {one['mode']}"


def _spread(spread: Result) -> str:
    low, high = _number(spread["min"]), _number(spread["max"])
    return f"{_number(spread['median'])} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f}"
