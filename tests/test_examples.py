"""Each example runs as a user would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote.servers import MODEL, VLLM, serving

ROOT = Path(__file__).parent.parent
EXPECTED = {
    "cached_encoder.py": ["6 texts, 2 hits, 4 encoded", "memory ", "disk "],
    "chroma_collection.py": ["[['tenant']]", "dimensions: stored 256, yours 64"],
    "encoder.py": ["The capital of France is Paris.", "3 documents"],
    "hybrid_search.py": [
        "第1079条 -> 民法典第一千零七十九条",
        "-> Error E1234-X",
        "-> 民法典第七百二十六条",
    ],
    "langchain_retriever.py": [
        "Water boils",
        "-> The capital of France",
        "-> 出租人出卖租赁房屋的",
    ],
    "llama_index_index.py": ["-> The capital of France", "-> 出租人出卖租赁房屋的"],
    "qdrant_collection.py": ["3 points", "'language': 'zh'"],
    "remote_encoder.py": ["256 dimensions", "-> The capital of France", "remote:tiny-served"],
    # With random weights, whose order means nothing.
    "reranker.py": [" 0 Water boils", " 1 The capital", " 2 出租人", "LangChain: ", "LlamaIndex: "],
}
NEED_A_RERANKER = {"reranker.py"}


def test_every_example_is_run() -> None:
    """The table above names every file in examples/."""
    assert sorted(EXPECTED) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str, reranker_checkpoint: Path) -> None:
    """The example ends well and prints what it promises."""
    arguments = [str(reranker_checkpoint)] if name in NEED_A_RERANKER else []
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    with serving(VLLM) as server:  # for the one that asks a server
        environment |= {"EMBEDDING_URL": server.url, "EMBEDDING_MODEL": MODEL}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=300
        )
    assert done.returncode == 0, done.stderr
    missing = [text for text in EXPECTED[name] if text not in done.stdout]
    assert not missing, f"{missing} not in: {done.stdout}"
