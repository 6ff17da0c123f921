"""Runs `bench`: the machine's rates and all engines, in alternating rounds; writes the results."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.checkpoint import Architecture, content_hash, locate_model, read_architecture
from ..core.config import EngineConfig
from ..core.tokenizer import Tokenizer
from ..errors import ConfigError, EngineError
from . import chart
from .contender import Contender, OursAlone, Scale
from .machine import describe
from .options import LENGTHS, OURS, RANDOM, BenchOptions
from .random_model import write_checkpoint
from .workers import Workers, install_peer, our_worker, peer_worker, run_module
from .workload import Workload, make_texts, make_workload

NAME = "bench-cpu"  # of the files
TOKENS_PER_LENGTH, MAX_TEXTS_PER_LENGTH = 4096, 256
STAGE_LENGTHS = [128] * 4  # one forward of 512 tokens
PAUSE_S = 0.5  # until the threads of the engine before have gone to sleep

Report = Callable[[str], None]
Attempt = Callable[[Contender], None]


def run_bench(options: BenchOptions, command: str, report: Report) -> dict[str, Any]:
    """Return all results, after writing them and a chart to `options.out`.

    `command` is recorded; `report` is told what is done next. An engine that cannot be installed,
    or that ends, has its reason in place of results. Raises ConfigError, MissingDependencyError,
    ModelError, and EngineError when ours cannot give the reference vectors.
    """
    chart.check_matplotlib()  # before an hour's work
    with _work_folder(options.work_dir) as work:
        report("making the model ready")
        model = _locate(options.model, work)
        architecture, tokenizer = read_architecture(model), Tokenizer(model)
        lengths = _lengths(options, architecture)
        workload = make_workload(
            tokenizer, num_documents=options.num_texts, num_queries=options.num_queries
        )
        num_parameters = count_matrix_parameters(architecture)
        with Workers(model) as workers:
            bench = _Bench(options, model, work, tokenizer, workload, workers, report)
            contenders = bench.measure(content_hash(model, architecture), lengths)
            rates = best_rates(bench.rates)
            scale = _scale(rates, num_parameters)
            engines = [one.result(workload, scale, bench.reference) for one in contenders]
    result = {
        **describe(command),
        **rates,
        "model": {"name": options.model, **asdict(architecture)},
        "matrix_parameters": num_parameters,
        "weight_read_ms": scale.weight_read_ms,
        "num_documents": len(workload.documents),
        "num_tokens": workload.num_tokens,
        "query_tokens": {"before": len(workload.prefix_ids), "own": len(workload.query_ids[0])},
        "num_queries": len(workload.queries),
        "num_concurrent": len(workload.concurrent_queries),
        "engines": engines,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (options.out / f"{NAME}.json").write_text(text, encoding="utf-8")
    chart.draw(result, options.out / NAME)
    return result


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all steps of a run share."""

    options: BenchOptions
    model: Path
    work: Path
    tokenizer: Tokenizer
    workload: Workload
    workers: Workers
    report: Report
    rates: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # one per round

    @property
    def reference(self) -> Path:
        """Where our float32 vectors lie."""
        return self.work / "vectors-reference.npy"

    def measure(self, model_hash: str, lengths: list[int]) -> list[Contender]:
        """Return every engine and mode, measured."""
        ours = [self._ours(mode, lengths) for mode in self.options.modes]
        contenders = [*ours, *self._peers(model_hash)]
        self.report("our float32 vectors")
        # Never a contender's own: the best mode may fail, and the others are still compared.
        worker = our_worker(self.model, "float32", self.work)
        request = {"ids": self.workload.documents, "vectors": str(self.reference)}
        self.workers.ask(worker, request)
        worker.close()
        peers = contenders[len(ours) :]
        self._each(peers, "batch sizes", lambda c: c.choose_batch_size(self.workers, self.workload))
        for index in range(self.options.num_rounds):
            title = f"round {index + 1} of {self.options.num_rounds}"
            self.report(f"{title}: the machine")
            self.rates.append(run_module("rates"))
            self._each(contenders, title, lambda c: c.measure_round(self.workers, self.workload))
        self.workers.close()
        self._each(ours, "stages", self._measure_stages)
        return contenders

    def _ours(self, mode: str, lengths: list[int]) -> Contender:
        texts = {length: make_texts(self.tokenizer, _repeated(length)) for length in lengths}
        worker = our_worker(self.model, mode, self.work)
        path = self.work / f"vectors-{OURS}-{mode}.npy"
        return Contender(OURS, mode, path, worker, apart=OursAlone(texts))

    def _peers(self, model_hash: str) -> Iterator[Contender]:
        """Yield a contender per peer and mode, each peer installed."""
        is_random = self.options.model == RANDOM
        for peer in self.options.against:
            self.report(f"installing {peer}")
            # What a peer made of one model must not be taken for what it makes of another.
            made = f"work-{peer}" if is_random else f"work-{peer}-{model_hash[:8]}"
            try:
                install_peer(peer, self.work)
            except EngineError as error:
                failure = str(error)
            else:
                failure = None
            for mode in self.options.peer_modes(peer):
                path = self.work / f"vectors-{peer}-{mode}.npy"
                worker = peer_worker(peer, mode, self.model, self.work, made)
                yield Contender(peer, mode, path, worker, failed=failure)

    def _each(self, contenders: list[Contender], title: str, attempt: Attempt) -> None:
        """Attempt a step with each; who fails takes no further part."""
        for contender in contenders:
            if contender.failed is not None:
                continue
            self.report(f"{title}: {contender.name}")
            time.sleep(PAUSE_S)
            try:
                attempt(contender)
            except EngineError as error:
                contender.failed = str(error)
                contender.worker.close()

    def _measure_stages(self, contender: Contender) -> None:
        texts = make_texts(self.tokenizer, STAGE_LENGTHS)
        num_queries = -(-sum(STAGE_LENGTHS) // len(self.workload.query_ids[0]))
        strings = [self.workload.queries[i % self.options.num_queries] for i in range(num_queries)]
        # One thread: a thread that waits for another would count as work.
        worker = our_worker(self.model, contender.mode, self.work, OMP_NUM_THREADS="1")
        request = {"measure": "stages", "ids": texts, "texts": strings}
        assert contender.apart is not None
        contender.apart.stages = self.workers.ask(worker, request)
        worker.close()


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


def _scale(machine: dict[str, Any], num_parameters: int) -> Scale:
    best = {name: max(rates.values()) for name, rates in machine["gemm_gflops"].items()}
    return Scale(
        tokens_per_s={name: 1e9 * rate / (2 * num_parameters) for name, rate in best.items()},
        weight_read_ms=1e-6 * num_parameters / machine["bandwidth_gb_s"],
    )


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
    if too_long := [length for length in options.lengths or () if length > longest]:
        raise ConfigError(
            f"lengths has {too_long}, {options.model} reads {longest} tokens at most; leave out "
            "what is longer"
        )
    return [length for length in options.lengths or LENGTHS if length <= longest]


def _repeated(length: int) -> list[int]:
    return [length] * max(1, min(MAX_TEXTS_PER_LENGTH, TOKENS_PER_LENGTH // length))


@contextmanager
def _work_folder(folder: Path | None) -> Generator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="qwen3-bench-") as temporary:
        yield Path(temporary)
