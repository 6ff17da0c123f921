"""The server under load: answers, latencies, throughput, memory; beside sentence-transformers.

    python -m benchmarks.serving                                       # tiny, some six minutes
    python -m benchmarks.serving --model random --quantization int8    # the 0.6B shape

Four measurements of one run, every answer compared with the encoder's own vector:
  queries alone, then the same queries beside bulk clients (p50, p99, memory over time);
  all documents through the server and through the encoder itself, in turn (tokens/s);
  single short queries of many clients, here and at sentence-transformers behind a minimal FastAPI
  application on the same weights, in turn (requests/s, the median of three rounds).
"""

from __future__ import annotations

import os

# As `qwen3-embedding serve` sets it for itself: the encoder here and the peer get the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import asyncio
import json
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import qwen3_embedding_integrations as package
from benchmarks.serving_clients import Tally, Workload, all_documents, mixed_load
from benchmarks.texts import make_texts
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.bench.random_model import write_checkpoint

TINY = Path(package.__file__).parent / "tiny"
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # 1 - cosine; float32 whatever the batch
INT8_TOLERANCE = 2e-2
PACKAGES = ("torch", "fastapi", "uvicorn", "sentence-transformers", "transformers")


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = {"tiny": TINY}.get(options.model, Path(options.model))
        if options.model == "random":
            folder = write_checkpoint(Path(temporary) / "model")
        report = measure(folder, options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "serving.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = markdown(report)
    (out / "serving.md").write_text(text, encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serving")
    parser.add_argument("--model", default="tiny", help="tiny, random (0.6B shape) or a folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--max-batch-tokens", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the mixed load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--bulk-clients", type=int, default=8, help="of these")
    parser.add_argument("--bulk-size", type=int, default=64, help="documents of a bulk request")
    parser.add_argument("--think", type=float, default=2.0, help="seconds between queries")
    parser.add_argument("--documents", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round of queries")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", default="benchmarks/results")
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of one run."""
    config = EncoderConfig(
        model=str(folder),
        dtype=options.dtype,
        quantization=options.quantization,
        max_batch_tokens=options.max_batch_tokens or "auto",
    )
    encoder = Qwen3Encoder(config)
    workload = make_workload(encoder, folder, options)
    command = f"python -m benchmarks.serving {shlex.join(sys.argv[1:])}".strip()
    report: dict[str, Any] = {
        "machine": describe(command, packages=PACKAGES),
        "options": vars(options),
    }
    with our_server(folder, options) as (url, pid):
        asyncio.run(mixed_load(url, "m", workload, seconds=3, **_clients(options)))  # warm
        report["mixed"] = measure_mixed(url, pid, workload, options)
        report["throughput"] = measure_throughput(url, encoder, workload, options)
        encoder.close()
        report["single_queries"] = measure_single(url, folder, workload, options)
    return report


def make_workload(encoder: Qwen3Encoder, folder: Path, options: argparse.Namespace) -> Workload:
    """Return texts with the encoder's own vectors of them."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(120), 0.8, options.documents), 3, 1024).astype(int)
    documents = make_texts(folder, lengths.tolist())
    queries = make_texts(folder, rng.integers(4, 12, 200).tolist(), seed=1)
    queries = [query.strip() or "?" for query in queries]
    tolerance = INT8_TOLERANCE if options.quantization else TOLERANCE[options.dtype]
    return Workload(
        queries,
        documents,
        encoder.encode_queries(queries),
        encoder.encode_documents(documents),
        np.array([encoder.count_tokens(text) for text in documents]),
        tolerance,
    )


def measure_mixed(
    url: str, pid: int, workload: Workload, options: argparse.Namespace
) -> dict[str, Any]:
    """Return queries' latencies alone and beside bulk, and the server's memory meanwhile."""
    clients = _clients(options)
    alone, _ = asyncio.run(
        mixed_load(url, "m", workload, seconds=30, **(clients | {"num_bulk_clients": 0}))
    )
    memory_mb: list[float] = []
    beside, bulk = asyncio.run(
        mixed_load(
            url,
            "m",
            workload,
            seconds=60 * options.minutes,
            every=lambda: memory_mb.append(resident_mb(pid)),
            **clients,
        )
    )
    quarter = max(1, len(memory_mb) // 4)
    return {
        "queries_alone": alone.summary(),
        "queries_beside_bulk": beside.summary(),
        "bulk": bulk.summary() | {"tokens_per_s": bulk.num_tokens / (60 * options.minutes)},
        "p99_ratio": beside.percentile(99) / alone.percentile(99),
        "memory_mb": {
            "second_quarter": statistics.mean(memory_mb[quarter : 2 * quarter] or memory_mb),
            "last_quarter": statistics.mean(memory_mb[-quarter:]),
            "most": max(memory_mb),
            "every_10_s": memory_mb[::10],
        },
    }


def _clients(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_query_clients": options.clients - options.bulk_clients,
        "num_bulk_clients": options.bulk_clients,
        "bulk_size": options.bulk_size,
        "think_s": options.think,
    }


def measure_throughput(
    url: str, encoder: Qwen3Encoder, workload: Workload, options: argparse.Namespace
) -> dict[str, Any]:
    """Return tokens/s of all documents, by the encoder in this process and through the server."""
    num_tokens = int(workload.document_tokens.sum())
    own: list[float] = []
    served: list[float] = []
    seen = Tally()
    for _ in range(options.rounds):
        start = time.perf_counter()
        encoder.encode_documents(workload.documents, show_progress=False)
        own.append(num_tokens / (time.perf_counter() - start))
        seen, seconds = asyncio.run(
            all_documents(
                url,
                "m",
                workload,
                bulk_size=options.bulk_size,
                num_clients=options.bulk_clients,
            )
        )
        served.append(num_tokens / seconds)
    return {
        "encoder_tokens_per_s": statistics.median(own),
        "server_tokens_per_s": statistics.median(served),
        "ratio": statistics.median(served) / statistics.median(own),
        "rounds": {"encoder": own, "server": served},
        "last_round": seen.summary(),
    }


def measure_single(
    url: str, folder: Path, workload: Workload, options: argparse.Namespace
) -> dict[str, Any]:
    """Return requests/s of single short queries, ours and the peer's, in turn."""
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    seen: dict[str, dict[str, float | int]] = {}

    def ask(name: str, at: str) -> None:
        start = time.perf_counter()
        tally, _ = asyncio.run(
            mixed_load(
                at,
                "m",
                workload,
                seconds=options.seconds,
                num_query_clients=options.clients,
                num_bulk_clients=0,
                bulk_size=0,
                think_s=0,
            )
        )
        rates[name].append(len(tally.latencies_ms) / (time.perf_counter() - start))
        seen[name] = tally.summary()

    if options.no_peer:
        for _ in range(options.rounds):
            ask("ours", url)
        return {"ours_per_s": statistics.median(rates["ours"]), "rounds": rates, "seen": seen}
    with peer_server(folder, options) as peer:
        for _ in range(options.rounds):
            ask("ours", url)
            ask("peer", peer)
    ours, theirs = statistics.median(rates["ours"]), statistics.median(rates["peer"])
    return {
        "ours_per_s": ours,
        "peer_per_s": theirs,
        "ratio": ours / theirs,
        "rounds": rates,
        "seen": seen,
    }


@contextmanager
def our_server(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Run `qwen3-embedding serve` over the folder; yield its URL and process id."""
    port = free_port()
    arguments = ["--model", f"m={folder}", "--port", str(port), "--dtype", options.dtype]
    if options.quantization:
        arguments += ["--quantization", options.quantization]
    if options.max_batch_tokens:
        arguments += ["--max-batch-tokens", str(options.max_batch_tokens)]
    line = [sys.executable, "-m", package.__name__, "serve", *arguments]
    with _process(line, port) as process:
        yield f"http://127.0.0.1:{port}", process.pid


@contextmanager
def peer_server(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """Run the peer over the same folder; yield its URL."""
    port = free_port()
    dtype = "bfloat16" if options.quantization else options.dtype
    line = [sys.executable, "-m", "benchmarks.serving_peer", str(folder), str(port), dtype]
    with _process(line, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(line: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(line, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            deadline = time.monotonic() + 300
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{shlex.join(line)} failed:\n{log.read().decode()}")
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def resident_mb(pid: int) -> float:
    """Return a process's resident memory in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return float("nan")


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    mixed, through, single = report["mixed"], report["throughput"], report["single_queries"]
    kinds = ("queries_alone", "queries_beside_bulk", "bulk")
    lines = [
        f"# Serving\n\n`{report['machine']['command']}`\n",
        "| | answers | wrong | lost | p50 ms | p99 ms |\n|---|--:|--:|--:|--:|--:|",
        *(
            f"| {kind.replace('_', ' ')} | {mixed[kind]['answers']} | {mixed[kind]['wrong']} | "
            f"{mixed[kind]['lost']} | {mixed[kind]['p50_ms']:.1f} | {mixed[kind]['p99_ms']:.1f} |"
            for kind in kinds
        ),
        f"\n- p99 of queries beside bulk: {mixed['p99_ratio']:.1f} × alone",
        f"- server memory, second quarter → last: {mixed['memory_mb']['second_quarter']:.0f} → "
        f"{mixed['memory_mb']['last_quarter']:.0f} MB (most {mixed['memory_mb']['most']:.0f})",
        f"- bulk through the server: {through['server_tokens_per_s']:,.0f} tokens/s, "
        f"{through['ratio']:.0%} of the encoder's own {through['encoder_tokens_per_s']:,.0f}",
        f"- single short queries: {single['ours_per_s']:.0f} requests/s",
    ]
    if "peer_per_s" in single:
        lines.append(
            f"- sentence-transformers behind FastAPI: {single['peer_per_s']:.0f} requests/s; "
            f"ours {single['ratio']:.1f} ×"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
