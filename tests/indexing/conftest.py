"""What the tests of indexing share: an empty collection of each store, an encoder that counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_embedding_integrations import Qwen3Encoder
from qwen3_embedding_integrations.rows import Sink
from tests.stores import Counting, open_sink


@pytest.fixture(params=["chroma", "qdrant"])
def sink(request: pytest.FixtureRequest, tmp_path: Path, tiny: Qwen3Encoder) -> Iterator[Sink]:
    """Yield an empty collection of each store."""
    with open_sink(request.param, tmp_path / "store", tiny) as one:
        yield one


@pytest.fixture
def encoder(tiny: Qwen3Encoder) -> Counting:
    """Return an encoder that notes what it encodes."""
    return Counting(tiny)
