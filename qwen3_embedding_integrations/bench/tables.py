"""The tables of a result, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .options import OURS

Result = dict[str, Any]


def make_tables(result: Result) -> Iterator[Table]:
    """Yield the machine, the documents, the queries, and for ours the lengths and the stages."""
    measured = [one for one in result["engines"] if "failed" not in one]
    ours = [one for one in measured if one["engine"] == OURS]
    yield _machine(result)
    yield _documents(result)
    yield _queries(result, measured)
    if ours:
        yield _lengths(ours)
        yield _stages(ours)


def _machine(result: Result) -> Table:
    rates = result["gemm_gflops"]
    num_rows = list(next(iter(rates.values())))
    table = _table(
        ["GFLOP/s", *(f"{rows} rows" for rows in num_rows)],
        f"{result['processor']}, {result['cores']} cores, "
        f"{result['bandwidth_gb_s']:.1f} GB/s from memory",
    )
    for name, values in rates.items():
        table.add_row(name, *(f"{values[rows]:.0f}" for rows in num_rows))
    return table


def _documents(result: Result) -> Table:
    columns = ("engine", "batch", "tokens/s", "of GEMM", "cosine, least", "MB, at peak", "load")
    title = f"{result['num_documents']} documents, {result['num_tokens']:,} tokens"
    table = _table(columns, title)
    for one in result["engines"]:
        if "failed" in one:
            table.add_row(_name(one), "", f"failed: {one['failed']}")
            continue
        share, cosine = one["gemm_share"], one["cosine"]
        table.add_row(
            _name(one),
            str(one["batch_size"] or "own"),
            _spread(one["documents_tokens_per_s"]),
            "" if share is None else f"{share:.0%}",
            f"{cosine['mean']:.5f} {cosine['min']:.5f}",
            f"{_megabytes(one['resident_bytes'])} {_megabytes(one['peak_resident_bytes'])}",
            f"{one['load_s']:.1f} s",
        )
    return table


def _queries(result: Result, measured: list[Result]) -> Table:
    tokens, num_callers = result["query_tokens"], result["num_concurrent"]
    table = _table(
        ("engine", "ms", "weight reads", "ms from string", f"{num_callers} at once"),
        f"One query: {tokens['own']} tokens after an instruction of {tokens['before']}; "
        f"the int8 weights are read once in {result['weight_read_ms']:.1f} ms",
    )
    for one in measured:
        cells = [_spread(one["query_latency_ms"]), f"{one['query_in_weight_reads']:.2f}"]
        if one["engine"] == OURS:
            speedup = one["concurrent_speedup"]
            cells += [_spread(one["query_from_string_ms"]), f"{speedup['median']:.1f}x the rate"]
        table.add_row(_name(one), *cells)
    return table


def _lengths(ours: list[Result]) -> Table:
    lengths = [entry["length"] for entry in ours[0]["lengths"]]
    table = _table(["length", *map(_name, ours)], "Texts of one length: tokens/s, MB at peak")
    for index, length in enumerate(lengths):
        entries = [one["lengths"][index] for one in ours]
        rates = [_number(entry["tokens_per_s"]["median"]) for entry in entries]
        peaks = [_megabytes(entry["peak_resident_bytes"]) for entry in entries]
        cells = [f"{rate}  {peak}" for rate, peak in zip(rates, peaks, strict=True)]
        table.add_row(f"{length:,}", *cells)
    return table


def _stages(ours: list[Result]) -> Table:
    table = _table(["stage", *map(_name, ours)], "One forward of 512 tokens on one thread, ms")
    for stage in ours[0]["stages"]["stages_ms"]:
        cells: list[str] = []
        for one in ours:
            stages = one["stages"]["stages_ms"]
            share = stages[stage] / sum(stages.values())
            cells.append(f"{stages[stage]:.1f}  {share:.0%}")
        table.add_row(stage, *cells)
    return table


def _table(columns: Iterable[str], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "engine")
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
