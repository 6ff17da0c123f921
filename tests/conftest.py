"""What all tests share: no network, three encoders, and which machine a marked test needs."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub's client, which reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "true"
# Before torch loads OpenMP: threads that spin at its barriers wait ten times as long on two cores
# that other processes use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# As `serve` has them: else oneDNN keeps what it made for each of the last 1,024 shapes, half a GB.
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from qwen3_embedding_integrations import (
    EncoderConfig,
    Qwen3Encoder,
    Qwen3Reranker,
    RerankerConfig,
    shared_encoder,
    sharing,
)
from qwen3_embedding_integrations.core.loaded import LoadedModel
from qwen3_embedding_integrations.core.memory import return_freed
from tests.checkpoints import SHAPE_SMALL, write_checkpoint, write_reranker

# Before Triton, which reads it once: without a card its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples in every run, and no deadline: the cores are shared.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Have the kernels of a CPU compiled once, before several processes would each."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        for arithmetic in ({"quantization": "int8"}, {"dtype": "auto"}):
            Qwen3Encoder(EncoderConfig.from_options("tiny", device="cpu", **arithmetic)).close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    needs = {
        "cuda": (torch.cuda.is_available(), "needs a CUDA device"),
        "weights": ("QWEN3_WEIGHTS" in os.environ, "set QWEN3_WEIGHTS to a folder or a hub id"),
        "reranker_weights": (
            "QWEN3_RERANKER_WEIGHTS" in os.environ,
            "set QWEN3_RERANKER_WEIGHTS to a folder or a hub id",
        ),
    }
    for item in items:
        for marker, (is_there, reason) in needs.items():
            if marker in item.keywords and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Take what imports made out of the collector's sight: none of it is ever garbage.

    With it, each full collection takes half a second, and so they are rare: what tests drop, with
    30 MB for each official tokenizer, would lie about for minutes.
    """
    gc.collect()
    gc.freeze()


def _shared_models() -> set[LoadedModel]:
    """Return the models in this process's registry, but not `tiny`, which many files share."""
    held = (slot.held for slot in sharing._registry.slots.values())
    return {one for one in held if isinstance(one, LoadedModel) and one.config.model != "tiny"}


@pytest.fixture(scope="module", autouse=True)
def _returned() -> Iterator[None]:
    """Close, after each file, the models it asked `shared_encoder` for; give their memory back."""
    before = _shared_models()
    yield
    for model in _shared_models() - before:
        model.engine.close()
    gc.collect()
    return_freed()


@pytest.fixture(scope="session")
def tiny() -> Qwen3Encoder:
    """Return the small trained model of the package, in float32; do not close it."""
    return shared_encoder(EncoderConfig(model="tiny", dtype="float32"))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder: four random layers, the official tokenizer; do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", SHAPE_SMALL)


@pytest.fixture(scope="session")
def small(small_checkpoint: Path) -> Iterator[Qwen3Encoder]:
    """Yield the encoder of `small_checkpoint`, in float32; do not close it."""
    config = EncoderConfig(model=str(small_checkpoint), dtype="float32", max_batch_tokens=8192)
    with Qwen3Encoder(config) as encoder:
        yield encoder


@pytest.fixture(scope="session")
def reranker_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder: four random layers, laid out like a reranker; do not change it."""
    return write_reranker(tmp_path_factory.mktemp("reranker") / "checkpoint")


@pytest.fixture(scope="session")
def reranker(reranker_checkpoint: Path) -> Iterator[Qwen3Reranker]:
    """Yield the reranker of `reranker_checkpoint`, in float32; do not close it."""
    config = RerankerConfig(model=str(reranker_checkpoint), dtype="float32", max_batch_tokens=8192)
    with Qwen3Reranker(config) as reranker:
        yield reranker
