"""Each example runs as a user would run it; the notebooks, which nbmake runs, carry no outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_embedding_integrations.core.linear import has_packed_products
from tests.remote.servers import MODEL, VLLM, serving

ROOT = Path(__file__).parent.parent
EXPECTED = {
    "cached_encoder.py": ["6 texts, 2 hits, 4 encoded", "memory ", "disk "],
    "chroma_collection.py": ["[['tenant']]", "dimensions: stored 256, yours 64"],
    "compare_settings.py": [
        "\n  0.",
        "'dimensions': '256', 'dense_weight': 'none'}",
        "config = EncoderConfig(\n    model='tiny',",
    ],
    "doctor.py": [
        "Qwen3Encoder: right",
        "Careless: wrong",
        '  wrong   instruction and template: a space after "Query:"',
        "-> wrong template: ",
    ],
    "encoder.py": ["The capital of France is Paris.", "3 documents"],
    "evaluate.py": ["256 dimensions: nDCG@10 0.", " 32 dimensions: nDCG@10 0.", "256 over 32: +0."],
    "export_graph.py": ["15 texts: mean cosine 0.999", "-> The capital", "torch imported: False"],
    "finetune_adapter.py": ["trainable params: ", "nDCG@10 of the held-out", "served: (1, 256) "],
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
    "mteb_benchmark.py": ["SupportQuestions: ", "; 12 texts encoded so far\nSupportQuestions: "],
    "openai_client.py": [
        "(3, 128) 44 tokens",
        "-> The capital of France",
        "-> 出租人出卖租赁房屋的",
    ],
    "plan_corpus.py": [
        " x 2 cores of an AMD EPYC (Zen 5), bfloat16: 2",  # 24 hours or a little less
        " h; 512.0 GB of vectors, 132.0 of index",
        "This rests on:",
        "1 x this machine, tiny: ",
    ],
    "qdrant_collection.py": ["3 points", "'language': 'zh'"],
    "quantize_int8.py": [
        "338 texts, cosine: mean 0.999",
        "of dtype float32, ",
        "of quantization None, opened by int8: noted",
    ],
    "reindex_collection.py": [
        "articles (1, 256) 民法典第七百二十六条",
        "338 rows, 0 encoded, ",
        "articles-v2 (1, 64) 民法典第七百二十六条\narticles (1, 256) 民法典第七百二十六条",
    ],
    "remote_encoder.py": ["256 dimensions", "-> The capital of France", "remote:tiny-served"],
    "ray_cluster.py": ["338 rows encoded, 0 failed", "338 rows loaded", "-> "],
    # With random weights, whose order means nothing.
    "reranker.py": [" 0 Water boils", " 1 The capital", " 2 出租人", "LangChain: ", "LlamaIndex: "],
    "resumable_indexing.py": [
        "the power fails; reported: 512 of 2072 rows\n",
        " added, 2072 rows\n2072 there, 0 added, 2072 rows",
    ],
    "two_stage_search.py": [
        "one stage  民法典第一千零八十条",
        "two stages 民法典第一千零八十二条",
        "two stages help/refunds",
    ],
}
NEED_A_RERANKER = {"reranker.py"}
NEED_X86 = {"quantize_int8.py"}
LENIENT = {"ray_cluster.py": ["-W", "default::DeprecationWarning"]}  # Ray 2.60 warns of itself


def test_every_example_is_run() -> None:
    """The table above names every file in examples/."""
    assert sorted(EXPECTED) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str, reranker_checkpoint: Path) -> None:
    """The example ends well and prints what it promises."""
    if name in NEED_X86 and not has_packed_products():
        pytest.skip("int8 needs oneDNN on x86")
    arguments = [str(reranker_checkpoint)] if name in NEED_A_RERANKER else []
    warnings = ["-W", "error", *LENIENT.get(name, [])]
    command = [sys.executable, *warnings, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    with serving(VLLM) as server:  # for the one that asks a server
        environment |= {"EMBEDDING_URL": server.url, "EMBEDDING_MODEL": MODEL}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=300
        )
    assert done.returncode == 0, done.stderr
    missing = [text for text in EXPECTED[name] if text not in done.stdout]
    assert not missing, f"{missing} not in: {done.stdout}"


@pytest.mark.parametrize("name", ["rag_en", "rag_zh"])
def test_a_notebook_is_committed_unexecuted(name: str) -> None:
    """A notebook holds code and prose alone, for the kernel that every environment has."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
