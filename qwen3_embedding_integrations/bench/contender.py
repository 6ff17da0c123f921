"""One engine in one mode under measurement: how it is asked, and its results."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .options import OURS, arithmetic_of
from .peers import PEERS
from .workload import TokenIds, Workload

BATCH_SIZES = (1, 8, 32)  # a peer counts by its best; ours makes its own batches
HOPELESS = 1.5  # times the best: a larger batch, with more padding, is not tried any more
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # nothing is fetched while measuring

Json = dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Contender:
    """One engine in one mode; a process of its own answers each request."""

    engine: str
    mode: str
    work: Path
    command: list[str]
    failed: str | None = None
    batch_size: int | None = None
    trials_s: dict[int, float] = field(default_factory=dict[int, float])  # by batch size
    replies: list[Json] = field(default_factory=list[Json])  # one per round
    stages: Json = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """The engine and its mode, as a log is called too."""
        return f"{self.engine} {self.mode}"

    @property
    def vectors(self) -> Path:
        """Where the documents' vectors lie."""
        return self.work / f"vectors-{self.engine}-{self.mode}.npy"

    def ask(self, request: Json, **environment: str) -> Json:
        """Return a new process's answer. Raises EngineError when it fails."""
        return run(self.command, self.work / f"{self.name}.log", request, **environment)

    def measure(self, documents: list[TokenIds], vectors: Path | None = None, **more: Any) -> Json:
        """Return a new process's answer for all documents in one call, and what else is asked."""
        request: Json = {
            "documents": documents,
            "warm_up": documents[: max(1, len(documents) // 12)],
            "vectors": None if vectors is None else str(vectors),
            "queries": [],
            "prefix_ids": [],
        }
        return self.ask(request | more)

    def choose_batch_size(self, workload: Workload) -> None:
        """Take the batch size that does a third of the documents fastest."""
        third = workload.documents[: max(1, len(workload.documents) // 3)]
        for size in BATCH_SIZES:
            try:
                reply = self.measure(third, warm_up=third[:size], batch_size=size)
            except EngineError:  # a large batch may not fit where a smaller one does
                if not self.trials_s:
                    raise
                break
            self.trials_s[size] = reply["documents_s"]
            if reply["documents_s"] > HOPELESS * min(self.trials_s.values()):
                break
        self.batch_size = min(self.trials_s, key=lambda size: self.trials_s[size])

    def measure_round(self, workload: Workload) -> None:
        """Run all documents in one call and every query by itself; ours, what else it is asked."""
        if self.engine == OURS:
            more: Json = {
                "queries": workload.query_ids,
                "prefix_ids": workload.prefix_ids,
                "strings": workload.queries,
                "concurrent": workload.concurrent_queries,
                "lengths": list(workload.by_length.values()),
            }
        else:
            more = {"queries": workload.whole_query_ids, "batch_size": self.batch_size}
        vectors = None if self.replies else self.vectors
        self.replies.append(self.measure(workload.documents, vectors, **more))

    def measure_stages(self, workload: Workload) -> None:
        """Ask ours where the time of a forward goes."""
        request = {"stages": workload.stage_ids, "stage_texts": workload.stage_strings}
        # One thread: a thread that waits for another would count as work.
        stages = self.ask(request, OMP_NUM_THREADS="1")
        self.stages = {name: stages[name] for name in ("stages_ms", "forward_ms", "num_threads")}

    def result(self, workload: Workload, machine: Json, reference: Path) -> Json:
        """Return what was measured on a machine of these rates, JSON-able."""
        about = {"engine": self.engine, "mode": self.mode}
        if self.failed is not None:
            return about | {"failed": self.failed}
        # Were there matrix products only.
        gflops = max(machine["gemm_gflops"][arithmetic_of(self.mode)].values())
        limit = 1e9 * gflops / (2 * machine["matrix_parameters"])
        rates = spread([workload.num_tokens / seconds for seconds in self._each("documents_s")])
        queries = spread(to_ms(self._each("queries_s")))
        first = self.replies[0]
        result = about | {
            "version": first["version"],
            "batch_size": self.batch_size,
            "batch_size_trials_s": self.trials_s,
            "load_s": statistics.median(self._each("load_s")),
            "resident_bytes": first["resident_bytes"],
            "peak_resident_bytes": max(self._each("peak_resident_bytes")),
            "cosine": compare(np.load(self.vectors), np.load(reference)),
            "documents_tokens_per_s": rates,
            "gemm_share": rates["median"] / limit if limit else None,
            "query_latency_ms": queries,
            "query_in_weight_reads": queries["median"] / machine["weight_read_ms"],
        }
        return result | self._result_of_ours(workload) if self.engine == OURS else result

    def _result_of_ours(self, workload: Workload) -> Json:
        seconds = zip(*self._each("lengths_s"), strict=True)  # by length, of all rounds
        peaks = zip(*self._each("lengths_peak_bytes"), strict=True)
        return {
            "query_from_string_ms": spread(to_ms(self._each("strings_s"))),
            "concurrent_speedup": spread(self._each("concurrent_speedup")),
            "lengths": [
                {
                    "length": length,
                    "num_texts": len(texts),
                    "tokens_per_s": spread([length * len(texts) / one for one in of_length]),
                    "peak_resident_bytes": max(peaks_of_length),
                }
                for (length, texts), of_length, peaks_of_length in zip(
                    workload.by_length.items(), seconds, peaks, strict=True
                )
            ],
            "stages": self.stages,
        }

    def _each(self, name: str) -> list[Any]:
        return [reply[name] for reply in self.replies]


def our_contender(model: Path, mode: str, work: Path, engine: str = OURS) -> Contender:
    """Return our engine in a mode."""
    command = [sys.executable, "-m", f"{__package__}.ours", str(model), mode]
    return Contender(engine=engine, mode=mode, work=work, command=command)


def peer_contender(peer: str, mode: str, model: Path, model_hash: str, work: Path) -> Contender:
    """Return a peer in a mode, installed; or what became of that in `failed`."""
    product = PEERS[peer].requirements[0]
    form = PEERS[peer].modes[mode]
    # What a peer made of one model must not be taken for what it makes of another.
    made = work / f"{product}-{form}-{model_hash[:8]}"
    script = str(Path(__file__).with_name("peers.py"))
    command = [*_python(peer, work), script, peer, mode, str(model), str(made)]
    contender = Contender(engine=peer, mode=mode, work=work, command=command)
    try:
        install_peer(peer, work)
    except EngineError as error:
        contender.failed = str(error)
    return contender


def install_peer(peer: str, work: Path) -> None:
    """Make the peer's virtual environment in `work`, unless it is there. Raises EngineError."""
    python, log = _python(peer, work), work / f"install-{peer}.log"
    folder = work / f"venv-{peer}"
    if Path(python[0]).exists():
        return
    try:
        run([sys.executable, "-I", "-m", "venv", str(folder)], log)
        run([*python, "-m", "pip", "install", *PEERS[peer].requirements], log)
    except BaseException as error:  # Ctrl-C too: half an environment must not look like a whole one
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, EngineError):
            raise EngineError(f"cannot be installed: {_last_words(log)}") from error
        raise


def run(command: Sequence[str], log: Path, request: Json | None = None, **environment: str) -> Json:
    """Return a command's answer to the request, {} to None. Raises EngineError."""
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            stdout=file if request is None else subprocess.PIPE,
            stderr=file,
            env=os.environ | OFFLINE | environment,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise EngineError(f"ended with status {done.returncode}: {_last_words(log)}")
    return {} if request is None else json.loads(done.stdout)


def spread(rounds: Sequence[float] | Sequence[Sequence[float]]) -> Json:
    """Return the rounds, of a value or several each, with all values' median, least and most."""
    values = np.ravel(rounds).tolist()
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values), "rounds": list(rounds)}


def to_ms(rounds_s: list[list[float]]) -> list[list[float]]:
    """Return seconds as milliseconds."""
    return [[1e3 * seconds for seconds in times] for times in rounds_s]


def compare(vectors: Any, reference: Any) -> dict[str, float]:
    """Return mean and minimum of the cosine between unit vectors."""
    cosines = np.sum(vectors.astype(np.float64) * reference, axis=1)
    return {"mean": float(cosines.mean()), "min": float(cosines.min())}


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"{said} ({log})"


def _python(peer: str, work: Path) -> list[str]:
    """Return the command that starts a peer's Python."""
    # Isolated (-I): neither PYTHONPATH nor a script's folder, ours, may reach into it.
    return [str(work / f"venv-{peer}" / "bin" / "python"), "-I"]
