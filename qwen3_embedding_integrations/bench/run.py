"""Runs `bench`: the machine's rates and all engines, in alternating rounds; writes the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..core.checkpoint import Architecture, content_hash, locate_model, read_architecture
from ..core.config import EngineConfig
from ..core.tokenizer import Tokenizer
from ..errors import ConfigError, EngineError
from . import chart
from .contender import Contender, our_contender, peer_contender, run
from .machine import describe
from .options import LENGTHS, RANDOM, BenchOptions
from .random_model import write_checkpoint
from .workload import Workload, make_workload

NAME = "bench-cpu"  # of the files

Report = Callable[[str], None]


def run_bench(options: BenchOptions, command: str, report: Report) -> dict[str, Any]:
    """Return all results, after writing them and a chart to `options.out`.

    `command` is recorded; `report` is told what is done next. An engine that cannot be installed,
    or that ends, has its reason in place of results. Raises ConfigError, MissingDependencyError,
    ModelError, and EngineError when ours cannot give the reference vectors.
    """
    with ExitStack() as stack:
        work = options.work_dir or Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        report("making the model ready")
        result = _measure(options, _locate(options.model, work), work, report)
    result = {**describe(command), **result}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (options.out / f"{NAME}.json").write_text(text, encoding="utf-8")
    chart.draw(result, options.out / NAME)
    return result


def _measure(options: BenchOptions, model: Path, work: Path, report: Report) -> dict[str, Any]:
    """Return the machine's rates and every engine's results."""
    architecture = read_architecture(model)
    workload = make_workload(
        Tokenizer(model),
        num_documents=options.num_texts,
        num_queries=options.num_queries,
        lengths=_lengths(options, architecture),
    )
    ours = [our_contender(model, mode, work) for mode in options.modes]
    peers: list[Contender] = []
    for peer in options.against:
        report(f"installing {peer}")
        made_of = content_hash(model, architecture)
        modes = options.peer_modes(peer)
        peers += [peer_contender(peer, mode, model, made_of, work) for mode in modes]

    report("our float32 vectors")
    # Never a contender's own: the best mode may fail, and the others are still compared.
    reference = our_contender(model, "float32", work, engine="reference")
    reference.measure(workload.documents, reference.vectors)
    for one in peers:
        _attempt(one, "batch sizes", Contender.choose_batch_size, workload, report)
    rates: list[dict[str, Any]] = []
    for index in range(options.num_rounds):
        title = f"round {index + 1} of {options.num_rounds}"
        report(f"{title}: the machine")
        rates.append(run([sys.executable, "-m", f"{__package__}.machine"], work / "rates.log", {}))
        for one in [*ours, *peers]:
            _attempt(one, title, Contender.measure_round, workload, report)
    for one in ours:
        _attempt(one, "stages", Contender.measure_stages, workload, report)
    facts = {**best_rates(rates), "matrix_parameters": count_matrix_parameters(architecture)}
    facts["weight_read_ms"] = 1e-6 * facts["matrix_parameters"] / facts["bandwidth_gb_s"]
    return {
        **facts,
        "model": {"name": options.model, **asdict(architecture)},
        "num_documents": len(workload.documents),
        "num_tokens": workload.num_tokens,
        "query_tokens": {"before": len(workload.prefix_ids), "own": len(workload.query_ids[0])},
        "num_queries": len(workload.queries),
        "num_concurrent": len(workload.concurrent_queries),
        "engines": [one.result(workload, facts, reference.vectors) for one in [*ours, *peers]],
    }


def _attempt(
    contender: Contender,
    title: str,
    step: Callable[[Contender, Workload], None],
    workload: Workload,
    report: Report,
) -> None:
    """Take a step with an engine; one that fails takes no further part."""
    if contender.failed is not None:
        return
    report(f"{title}: {contender.name}")
    try:
        step(contender, workload)
    except EngineError as error:
        contender.failed = str(error)


def count_matrix_parameters(architecture: Architecture) -> int:
    """Return the parameters of all layers' matrices: each multiplies every token once."""
    a = architecture
    heads = 2 * a.num_heads + 2 * a.num_kv_heads  # q and o, k and v
    return a.num_layers * a.hidden_size * (heads * a.head_dim + 3 * a.intermediate_size)


def best_rates(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best of each rate, and all rounds: others' work lowers a rate, never lifts it."""
    products = {
        dtype: {rows: max(one["gemm_gflops"][dtype][rows] for one in rounds) for rows in rates}
        for dtype, rates in rounds[0]["gemm_gflops"].items()
    }
    bandwidth = max(one["bandwidth_gb_s"] for one in rounds)
    return {"gemm_gflops": products, "bandwidth_gb_s": bandwidth, "rate_rounds": rounds}


def _locate(model: str, work: Path) -> Path:
    """Return the model's folder, making the random one where it is not yet."""
    if model != RANDOM:
        return locate_model(EngineConfig(model=model))
    folder = work / "random-0.6b"
    if not (folder / "model.safetensors").is_file():
        write_checkpoint(folder)
    return folder


def _lengths(options: BenchOptions, architecture: Architecture) -> list[int]:
    longest = architecture.max_positions
    if too_long := [length for length in options.lengths if length > longest]:
        raise ConfigError(
            f"lengths has {too_long}, {options.model} reads {longest} tokens at most; leave out "
            "what is longer"
        )
    return [length for length in options.lengths or LENGTHS if length <= longest]
