"""Record what transformers' Qwen3Model makes of `tiny` in float32: golden/tiny.json.

python -m benchmarks.record_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from qwen3_embedding_integrations import shared_encoder
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.doctor.texts import DOCUMENTS, QUERY_STRINGS
from tests.oracle import vectors_of_ids

PACKAGE = Path(__file__).parent.parent / "qwen3_embedding_integrations"


def main() -> None:
    """Write the file."""
    folder, texts = PACKAGE / "tiny", [*DOCUMENTS, *QUERY_STRINGS]
    ids = [[int(i) for i in row] for row in Tokenizer(folder).encode(texts)]
    vectors = vectors_of_ids(folder, ids)
    source = (
        "benchmarks/record_golden.py: transformers' Qwen3Model, CPU float32, one text at a time; "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
    rows = [
        {
            "text": text,
            "source": "ours",
            "token_ids": row,
            "atol": 0.0,
            "values": [float(f"{value:.7f}") for value in vector],
        }
        for text, row, vector in zip(texts, ids, vectors, strict=True)
    ]
    golden = {
        "model": "tiny",
        "revision": None,
        "content_hash": shared_encoder("tiny").contract.revision,
        "width": vectors.shape[1],
        "sources": {"ours": source},
        "texts": {},
        "pairs": [],
        "vectors": rows,
    }
    path = PACKAGE / "golden" / "tiny.json"
    path.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
