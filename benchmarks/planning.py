"""What `plan` says of a corpus from a sample of it, beside what indexing it then takes.

    python -m benchmarks.planning --documents 20000

The sample is one file of every hundred; the corpus is indexed into a local Chroma and a local
Qdrant by the command's own functions, each after a plan of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.texts import make_texts
from qwen3_embedding_integrations.bench.machine import describe

PROGRAM = [sys.executable, "-m", "qwen3_embedding_integrations"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.planning")
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--output", default="benchmarks/results/planning.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder, options.documents)
        runs = {store: measure(folder, store, options.documents) for store in ("chroma", "qdrant")}
    command = f"python -m benchmarks.planning --documents {options.documents}"
    report = describe(command) | {"documents": options.documents, "runs": runs}
    Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(runs, indent=2))


def write_corpus(folder: Path, num_documents: int) -> None:
    """Write files of a thousand lines, a document each, and a sample of every hundredth."""
    rng = random.Random(0)
    lengths = [min(480, max(4, round(rng.lognormvariate(4.6, 0.7)))) for _ in range(num_documents)]
    texts = make_texts(Path("qwen3_embedding_integrations/tiny"), lengths)
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "corpus").mkdir()
    for start in range(0, num_documents, 1000):
        path = folder / "corpus" / f"{start}.jsonl"
        path.write_text("\n".join(lines[start : start + 1000]), encoding="utf-8")
    (folder / "sample.jsonl").write_text("\n".join(lines[::100]), encoding="utf-8")


def measure(folder: Path, store: str, num_documents: int) -> dict[str, float]:
    """Return planned and taken seconds; the command's start is neither's."""
    model = ["--model", "tiny"]
    asked = ["plan", "--documents", str(num_documents), "--sample", str(folder / "sample.jsonl")]
    said = subprocess.run([*PROGRAM, *asked, *model, "--json"], check=True, capture_output=True)
    (plan,) = json.loads(said.stdout)["plans"]
    empty = folder / "empty.txt"
    empty.write_text("One text.", encoding="utf-8")
    start = run_index(empty, folder / f"{store}-empty", store)
    taken = run_index(folder / "corpus", folder / store, store) - start
    planned = plan["hours"] * 3600
    return {"planned_s": planned, "taken_s": taken, "ratio": planned / taken}


def run_index(source: Path, location: Path, store: str) -> float:
    """Return the seconds of `qwen3-embedding index`."""
    line = [*PROGRAM, "index", str(source), "--location", str(location), "--model", "tiny"]
    start = time.perf_counter()
    subprocess.run([*line, "--store", store], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
