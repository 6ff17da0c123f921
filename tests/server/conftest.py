"""One server for all tests that leave it as it was: `tiny` and a random reranker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_embedding_integrations import EncoderConfig, RerankerConfig
from qwen3_embedding_integrations.server import ServedModel
from tests.server.serving import Running, serving


@pytest.fixture(scope="session")
def tiny_model() -> ServedModel:
    """Return `tiny` in float32, as the fixture `tiny` computes it, with weights of its own."""
    config = EncoderConfig(model="tiny", dtype="float32")
    return ServedModel.embedding(config, aliases=("text-embedding-3-small",))


@pytest.fixture(scope="session")
def server(tiny_model: ServedModel, reranker_checkpoint: Path) -> Iterator[Running]:
    """Yield a server of `tiny` and of `reranker_checkpoint`, called "reranker"."""
    config = RerankerConfig(model=str(reranker_checkpoint), dtype="float32")
    reranker = ServedModel.reranking(config, name="reranker")
    with serving([tiny_model, reranker]) as running:
        yield running
