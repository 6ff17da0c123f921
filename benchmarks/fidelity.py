"""What a dtype or int8 costs in ranking: nDCG@10 of `tiny` on public sets, in every mode.

python -m benchmarks.fidelity --data DIR             # ten minutes; DIR as for benchmarks.search
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search import SETS, load_set, ndcg
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.evaluation import RetrievalSet, rank_vectors

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
MODES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
DEPTH = 10


def vectors_of(questions: RetrievalSet, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of documents and queries, (N, 256) and (M, 256) float32."""
    with Qwen3Encoder(EncoderConfig(model="tiny", on_empty="embed", **options)) as encoder:
        documents = encoder.encode_documents(list(questions.documents.values()))
        return documents, encoder.encode_queries(list(questions.queries.values()))


def measure(questions: RetrievalSet) -> dict[str, Any]:
    """Return points of every mode, and cosines to float32."""
    result: dict[str, Any] = {"questions": len(questions.queries)}
    exact: np.ndarray | None = None
    for mode, options in MODES.items():
        documents, queries = vectors_of(questions, options)
        exact = documents if exact is None else exact
        cosines = np.einsum("ij,ij->i", documents, exact)
        ranking = rank_vectors(questions, queries, documents, depth=DEPTH)
        result[mode] = {
            "ndcg_at_10": round(ndcg(questions, ranking), 2),
            "cosine_mean": float(cosines.mean()),
            "cosine_least": float(cosines.min()),
        }
    return result


def main() -> None:
    """Measure all sets, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    results: dict[str, Any] = describe("python -m benchmarks.fidelity --data DIR")
    for name in SETS:
        results[name] = measure(load_set(data / name))
        print(name, json.dumps(results[name]), flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
