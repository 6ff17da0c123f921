"""What a Ray cluster of two nodes on this machine holds to: a killed worker, scaling, memory.

    python -m benchmarks.ray_cluster                   # about ten minutes on two quiet cores
    python -m benchmarks.ray_cluster --documents 2000 --parts kill

The killed job writes to a real Chroma server, with `tiny`. Scaling and memory are about Ray and
what stands around the model, so the model is a stand-in that sleeps (one call at a time, like a
device), or costs nothing, and the store keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.indexing_memory import ForgetfulSink, HashEncoder, resident_megabytes
from qwen3_embedding_integrations import EncoderConfig, index_documents, ray_data, shared_encoder
from qwen3_embedding_integrations.bench.machine import PACKAGES, describe
from qwen3_embedding_integrations.chroma import ChromaStore, connect, open_collection
from qwen3_embedding_integrations.indexing import IndexReport
from qwen3_embedding_integrations.rows import Row
from qwen3_embedding_integrations.stores import OpenStore
from tests.servers import ChromaServer, Proxy, serving
from tests.stores import folder_in_memory, held_by, make_documents
from tests.test_ray import actor_pids

RESULTS = Path(__file__).parent / "results"
SLEEP_S = 0.002  # of a row in the stand-in: 500 rows a second of an actor
NUM_SAMPLES = 20
STORE_OPTIONS = {"model": "tiny", "dtype": "float32"}
console = Console()


class SleepingEncoder(HashEncoder):
    """A device that takes its time, one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        with self._lock:
            time.sleep(len(documents) * SLEEP_S)
        return super().encode_documents(documents)


class LoggingSink(ForgetfulSink):
    """A collection that keeps nothing but when each of its rows came, in a file."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def write(self, rows: Sequence[Row], vectors: np.ndarray, *, are_new: bool) -> None:
        super().write(rows, vectors, are_new=are_new)
        with self._log.open("a") as file:
            file.write(f"{time.time()} {os.getpid()} {len(rows)}\n")


def open_stand_in(log: Path | None) -> OpenStore:
    """Return a sink and an encoder that are none."""
    sink: Any = ForgetfulSink() if log is None else LoggingSink(log)
    encoder: Any = HashEncoder() if log is None else SleepingEncoder()
    return OpenStore(sink, encoder)


def make_rows(batch: pa.Table) -> pa.Table:
    """Return documents of generated numbers."""
    numbers = batch["id"].to_pylist()
    texts = [f"document {i} says nothing that is worth a vector" for i in numbers]
    return pa.table({"text": texts, "source": [f"{i}.txt" for i in numbers]})


def generated(num: int, num_blocks: int) -> ray.data.Dataset:
    """Return so many documents, made as they are read."""
    numbers = ray.data.range(num, override_num_blocks=num_blocks)
    return numbers.map_batches(make_rows, batch_format="pyarrow")


@contextmanager
def two_nodes(num_cpus: int) -> Iterator[None]:
    """Start two raylets with so many cores each, in name, and join them."""
    node = {"num_cpus": num_cpus, "object_store_memory": 300 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray_data.connect(cluster.address)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure_kill(num: int) -> dict[str, Any]:
    """Index documents with a worker killed half-way, again, and by one process; compare."""
    documents = make_documents(num)
    rows = [{"text": d.text, "source": d.source, "position": d.position} for d in documents]
    killed: list[int] = []

    def kill_one(report: IndexReport) -> None:
        if report.written >= num // 2 and not killed:
            killed.append(report.written)
            os.kill(actor_pids()[0], signal.SIGKILL)

    with folder_in_memory() as folder, ChromaServer(folder) as server, two_nodes(2):
        dataset = ray.data.from_arrow(pa.Table.from_pylist(rows)).repartition(num // 500)
        actors = ray_data.actor_options(EncoderConfig(**STORE_OPTIONS), num_actors=2)
        proxy = Proxy(server.port, "cut", every=10**9)  # counts writes, cuts none
        with serving(proxy) as port:
            url = f"http://127.0.0.1:{port}"
            target = ray_data.server("chroma", url, "cluster", **STORE_OPTIONS)
            start = time.perf_counter()
            first = ray_data.index_dataset(dataset, target, actors=actors, on_progress=kill_one)
            seconds, num_writes = time.perf_counter() - start, proxy.num_writes
            again = ray_data.index_dataset(dataset, target, actors=actors)
            num_writes_again = proxy.num_writes - num_writes
        client = connect(f"http://127.0.0.1:{server.port}")
        stores = [
            ChromaStore(client, open_collection(client, name, **STORE_OPTIONS))
            for name in ("cluster", "one")
        ]
        index_documents(documents, shared_encoder(EncoderConfig(**STORE_OPTIONS)), stores[1])
        found, wanted = map(held_by, stores)
    same = found.keys() == wanted.keys()
    return {
        "documents": num,
        "killed_at": killed[0],
        "rows": len(found),
        "same_ids": same,
        "same_texts_and_facts": same and all(found[i][:2] == wanted[i][:2] for i in wanted),
        "max_abs_difference": max(float(np.abs(found[i][2] - wanted[i][2]).max()) for i in wanted),
        "seconds": seconds,
        "counted": {"added": first.added, "unchanged": first.unchanged, "failed": first.failed},
        "second_run": {"written": again.written, "requests_that_write": num_writes_again},
    }


def rate_of(log: Path, num_actors: int) -> float:
    """Return rows a second, from when every actor has written until the first has no more to."""
    lines = [line.split() for line in log.read_text().splitlines()]
    times: dict[str, list[float]] = {}
    for at, pid, _ in lines:
        times.setdefault(pid, []).append(float(at))
    if len(times) != num_actors:
        raise SystemExit(f"{len(times)} of {num_actors} actors wrote")
    start = max(min(one) for one in times.values())
    end = min(max(one) for one in times.values())
    return sum(int(num) for at, _, num in lines if start < float(at) <= end) / (end - start)


def measure_scaling(sizes: Sequence[int], num_per_actor: int) -> dict[str, Any]:
    """Return rows a second by number of actors."""
    rates: dict[int, float] = {}
    with folder_in_memory() as folder, two_nodes(6):
        for size in sizes:
            log = folder / f"{size}.log"
            actors = ray_data.actor_options(
                EncoderConfig(device="cpu"), num_actors=size, batch_rows=512
            )
            ray_data.index_dataset(
                generated(num_per_actor * size, num_per_actor * size // 512),
                partial(open_stand_in, log),
                actors=actors,
            )
            rates[size] = rate_of(log, size)
            console.print(size, "actors", rates[size], "rows/s")
    one = rates[min(rates)] / min(rates)
    return {
        "sleep_s_per_row": SLEEP_S,
        "rows_per_s": rates,
        "efficiency": {size: rate / size / one for size, rate in rates.items()},
    }


def measure_driver(num: int) -> dict[str, Any]:
    """Return the driver's resident memory while a cluster takes generated rows."""
    samples: dict[str, list[float]] = {"rows": [], "megabytes": []}

    def sample(report: IndexReport) -> None:
        if report.added >= len(samples["rows"]) * num / NUM_SAMPLES + num / NUM_SAMPLES:
            samples["rows"].append(report.added)
            samples["megabytes"].append(resident_megabytes())

    with two_nodes(2):
        actors = ray_data.actor_options(EncoderConfig(device="cpu"), num_actors=2, batch_rows=4096)
        start = time.perf_counter()
        ray_data.index_dataset(
            generated(num, num // 4096),
            partial(open_stand_in, None),
            actors=actors,
            on_progress=sample,
        )
        seconds = time.perf_counter() - start
    growth = samples["megabytes"][-1] / samples["megabytes"][0] - 1
    return {**samples, "growth": growth, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=50_000, help="of the killed job")
    parser.add_argument("--actors", default="1,2,4,8")
    parser.add_argument("--rows", type=int, default=15_000, help="of an actor in scaling")
    parser.add_argument("--generated", type=int, default=1_000_000, help="rows, of memory")
    parser.add_argument("--parts", default="kill,scaling,driver")
    parser.add_argument("--output", type=Path, default=RESULTS / "ray.json")
    given = parser.parse_args()
    sizes = [int(one) for one in given.actors.split(",")]
    parts = {
        "kill": lambda: measure_kill(given.documents),
        "scaling": lambda: measure_scaling(sizes, given.rows),
        "driver": lambda: measure_driver(given.generated),
    }
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    packages = (*PACKAGES, "ray", "pyarrow", "chromadb")
    command = shlex.join(["python", "-m", "benchmarks.ray_cluster", *sys.argv[1:]])
    for part in given.parts.split(","):
        start = time.perf_counter()
        machine = describe(command, packages=packages)
        results[part] = {**parts[part](), "machine": machine}
        console.print(part, results[part], f"({time.perf_counter() - start:.0f} s)")
        given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
