"""The examples in docstrings run as they are printed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: Chroma's in-memory clients share one database per process.
SCRIPT = """
import doctest, importlib, sys
result = doctest.testmod(importlib.import_module(sys.argv[1]), raise_on_error=False)
print(result.attempted, "tried")
sys.exit(result.failed)
"""


MODULES = [
    "doctor.diagnosis",
    "encoder",
    "cache.encoder",
    "chroma.function",
    "chroma.store",
    "keywords",
    "langchain.embeddings",
    "llama_index.embedding",
    "qdrant.collection",
    "qdrant.store",
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    """Each door's docstring example gives what it prints."""
    command = [sys.executable, "-c", SCRIPT, f"qwen3_embedding_integrations.{module}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 tried" not in "\n" + done.stdout
