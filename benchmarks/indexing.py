"""What indexing jobs survive and cost: kills, second runs, memory, a busy encoder, throughput.

    python -m benchmarks.indexing              # about ten minutes on two quiet cores
    python -m benchmarks.indexing --documents 1000 --kills 3 --endless 4000 --texts 500 --rounds 1

Documents are of one line, the model is `tiny`, so that what is not the model shows. Stores are
folders in memory where the machine has them: nothing here is about the disk. Memory is measured
with a server of its own as the store: a store in the process keeps its rows there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from rich.console import Console

from benchmarks.indexing_memory import measure_memory
from benchmarks.indexing_throughput import measure_busy, measure_throughput
from qwen3_embedding_integrations import EncoderConfig, shared_encoder
from qwen3_embedding_integrations.bench.machine import PACKAGES, describe
from qwen3_embedding_integrations.indexing import ReadOptions, index_folders
from tests.indexing import jobs
from tests.stores import folder_in_memory, open_sink

RESULTS = Path(__file__).parent / "results"
MAX_ROWS = 512  # of a window, as in real jobs
console = Console()


def measure_kills(store: str, num: int, num_kills: int) -> dict[str, Any]:
    """Kill a job at random points, resume it each time, compare with an undisturbed one."""
    with folder_in_memory() as folder:
        calm = jobs.Place(store, folder / "calm" / "store", folder / "calm" / "journal")
        place = jobs.Place(store, folder / "killed" / "store", folder / "killed" / "journal")
        calm.folder.parent.mkdir()
        place.folder.parent.mkdir()
        jobs.run_to_end(jobs.run_job, calm, jobs.notes, num, MAX_ROWS)
        num_again = num_encoded = num_running = 0
        for held, encoded, was_running in jobs.kill_and_resume(
            place, jobs.notes, num, num_kills, seed=1, max_rows=MAX_ROWS
        ):
            num_again += len(held.intersection(encoded))
            num_running += was_running
            num_encoded += len(encoded)
        rows: list[dict[str, np.ndarray]] = []
        for one in (calm, place):
            jobs.run_to_end(jobs.save_rows, one, folder / "rows.npz")
            rows.append(dict(np.load(folder / "rows.npz")))
    return {
        "documents": num,
        "kills": num_running,
        "same_ids": rows[0]["ids"].tolist() == rows[1]["ids"].tolist(),
        "same_texts": rows[0]["texts"].tolist() == rows[1]["texts"].tolist(),
        "max_abs_difference": float(np.abs(rows[0]["vectors"] - rows[1]["vectors"]).max()),
        "committed_rows_encoded_again": num_again,
        "uncommitted_rows_encoded_again": num_encoded - num,
        "journal_intact": True,  # else kill_and_resume has raised
    }


def measure_second_run(store: str, num: int) -> dict[str, Any]:
    """Index a folder of as many files twice; the second run has nothing to do."""
    encoder = shared_encoder(EncoderConfig(model="tiny", dtype="float32"))
    with folder_in_memory() as folder:
        for i, document in enumerate(jobs.notes(num)):
            path = folder / "files" / f"{i // 1000}" / f"{i}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{document.text}\n", encoding="utf-8")
        seconds: list[float] = []
        forwards: list[int] = []
        for _ in range(2):
            with open_sink(store, folder / "store", encoder) as sink:
                start, before = time.perf_counter(), encoder.stats().forwards
                report = index_folders(
                    [folder / "files"],
                    encoder,
                    sink,
                    options=ReadOptions(encoder.count_tokens),
                    journal=folder / "journal",
                )
                seconds.append(time.perf_counter() - start)
                forwards.append(encoder.stats().forwards - before)
    if report.unchanged != num:
        raise SystemExit(f"the second run found {report.unchanged} of {num} files unchanged")
    return {
        "files": num,
        "first_s": seconds[0],
        "second_s": seconds[1],
        "second_share": seconds[1] / seconds[0],
        "second_forwards": forwards[1],
    }


def describe_results(results: dict[str, Any]) -> str:
    """Return the results as Markdown tables."""
    lines = ["# Indexing", "", f"`{results['command']}`, {results['processor']}, "]
    lines[-1] += f"{results['cores']} cores, {results['date']}."
    if kills := results.get("kills"):
        lines += ["", "| kill -9 and resumed | kills | same ids and texts | vectors differ by | "]
        lines[-1] += "committed rows encoded again | uncommitted, again |"
        lines += ["|---|---|---|---|---|---|"]
        for store, row in kills.items():
            is_same = "yes" if row["same_ids"] and row["same_texts"] else "NO"
            lines.append(
                f"| {store}, {row['documents']:,} documents | {row['kills']} | {is_same} "
                f"| {row['max_abs_difference']:.1e} | {row['committed_rows_encoded_again']} "
                f"| {row['uncommitted_rows_encoded_again']} |"
            )
    if second := results.get("second_run"):
        lines += ["", "| unchanged folder | first run, s | second, s | share | forwards |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {store}, {row['files']:,} files | {row['first_s']:.1f} | {row['second_s']:.2f} "
            f"| {row['second_share']:.1%} | {row['second_forwards']} |"
            for store, row in second.items()
        ]
    if memory := results.get("memory"):
        lines += ["", "| endless generator | documents | MB of the job | from first to last |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {name} | {row['documents'][0]:,} to {row['documents'][-1]:,} "
            f"| {min(row['megabytes']):.0f} to {max(row['megabytes']):.0f} | {row['growth']:+.1%} |"
            for name, row in memory.items()
        ]
    if busy := results.get("busy"):
        lines += [
            "",
            f"Encoder busy beside a store that keeps up, {busy['documents']:,} documents: ",
        ]
        lines[-1] += f"{busy['busy_share']:.1%} of the job's time."
    if throughput := results.get("throughput"):
        lines += ["", "| documents/s, medians | index_documents | encoder busy | LangChain's | × |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {store}, {row['texts']:,} texts | {row['ours']:.0f} | {row['busy_share']:.1%} "
            f"| {row['theirs']:.0f} | {row['ratio']:.2f} |"
            for store, row in throughput.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000, help="of kills and second runs")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--endless", type=int, default=200_000, help="documents of the generator")
    parser.add_argument("--texts", type=int, default=4_000, help="of a round of throughput")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stores", default="chroma,qdrant")
    parser.add_argument("--parts", default="kills,second_run,memory,busy,throughput")
    parser.add_argument("--output", type=Path, default=RESULTS / "indexing.json")
    given = parser.parse_args()
    stores = given.stores.split(",")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: {s: measure_kills(s, given.documents, given.kills) for s in stores},
        "second_run": lambda: {s: measure_second_run(s, given.documents) for s in stores},
        "memory": lambda: measure_memory(given.endless),
        "busy": lambda: measure_busy(given.documents, given.rounds),
        "throughput": lambda: {
            s: measure_throughput(s, given.texts, given.rounds, console.print) for s in stores
        },
    }
    packages = (*PACKAGES, "chromadb", "qdrant-client", "langchain-chroma", "langchain-qdrant")
    command = shlex.join(["python", "-m", "benchmarks.indexing", *sys.argv[1:]])
    results = describe(command, packages=packages)
    for part in given.parts.split(","):
        start = time.perf_counter()
        results[part] = parts[part]()
        console.print(part, results[part], f"({time.perf_counter() - start:.0f} s)")
    given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    given.output.with_suffix(".md").write_text(describe_results(results), encoding="utf-8")
    console.print(describe_results(results), given.output)


if __name__ == "__main__":
    main()
