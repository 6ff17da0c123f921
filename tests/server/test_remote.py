"""RemoteEncoder over the real server: the local encoder's vectors, and each side's limits kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from qwen3_embedding_integrations import (
    EncoderConfig,
    InputError,
    Qwen3Encoder,
    RemoteEncoder,
    RemoteError,
)
from qwen3_embedding_integrations.server import ServedModel, ServerConfig
from tests.server.serving import Running, assert_close, serving

QUERIES = ["如何重置密码？ 🚀", "a\nquery", " leading"]
DOCUMENTS = [f"document {i} " + "so on " * (i % 9) for i in range(60)]


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """Yield a server with a key, few texts, few tokens and few requests at a time."""
    model = ServedModel.embedding(EncoderConfig(model="tiny", dtype="float32"))
    config = ServerConfig(api_keys=("sesame",), max_texts=8, max_tokens=200, max_requests=2)
    with serving([model], config) as running:
        yield running


async def test_vectors_are_the_local_encoders(server: Running, tiny: Qwen3Encoder) -> None:
    """Queries and documents, sync, async and streamed; the server counts what was read."""
    with RemoteEncoder(f"{server.url}/v1", model="tiny") as encoder:
        assert_close(encoder.encode_queries(QUERIES), tiny.encode_queries(QUERIES))
        documents = tiny.encode_documents(DOCUMENTS)
        assert_close(encoder.encode_documents(DOCUMENTS), documents)
        assert_close(await encoder.aencode_documents(DOCUMENTS), documents)
        assert_close(np.concatenate([*encoder.stream_documents(DOCUMENTS, window=7)]), documents)
        assert encoder.count_tokens(DOCUMENTS[8]) == tiny.count_tokens(DOCUMENTS[8])
        with pytest.raises(RemoteError, match=r"404.*served: tiny"):
            RemoteEncoder(f"{server.url}/v1", model="another").encode_queries(["a"])


def test_a_strict_server_is_asked_in_parts(strict: Running, tiny: Qwen3Encoder) -> None:
    """Too many texts, tokens or requests at once: divided or asked again, no vector lost."""
    with RemoteEncoder(f"{strict.url}/v1", model="tiny", api_key="sesame") as encoder:
        documents = tiny.encode_documents(DOCUMENTS)
        assert_close(encoder.encode_documents(DOCUMENTS), documents)

        async def together() -> list[np.ndarray]:
            return await asyncio.gather(*[encoder.aencode_documents(DOCUMENTS[:20])] * 4)

        for vectors in asyncio.run(together()):
            assert_close(vectors, documents[:20])
        with pytest.raises(InputError, match=r"documents\[1\] is longer than the server") as caught:
            encoder.encode_documents(["a", "so on " * 200])
        assert caught.value.index == 1
    keyless = RemoteEncoder(f"{strict.url}/v1", model="tiny")
    with keyless, pytest.raises(RemoteError, match="401: Incorrect API key"):
        keyless.encode_documents(["a"])
