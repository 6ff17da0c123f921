"""Qwen3Embeddings: LangChain's Embeddings."""

from __future__ import annotations

import asyncio
from typing import Unpack

from langchain_core.embeddings import Embeddings

from ..contract import Encoder
from ..core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions
from ..errors import ConfigError
from ..sharing import shared_encoder


class Qwen3Embeddings(Embeddings):
    """Qwen3-Embedding for LangChain: documents bare, queries behind the instruction.

    Takes every option of `EncoderConfig` by name, or a ready `encoder`. The model loads with the
    first text and is shared by all that ask for the same one in this process; concurrent calls,
    from threads or coroutines, run together on the device.

    >>> from qwen3_embedding_integrations.langchain import Qwen3Embeddings
    >>> embeddings = Qwen3Embeddings("tiny", dimensions=128)
    >>> len(embeddings.embed_query("How do I reset my password?"))
    128
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        encoder: Encoder | None = None,
        **options: Unpack[EncoderOptions],
    ) -> None:
        if encoder is not None and (options or model):
            raise ConfigError("give either encoder or options, not both")
        self._given = encoder
        self._config = EncoderConfig.from_options(model or DEFAULT_MODEL, **options)

    @property
    def encoder(self) -> Encoder:
        """The encoder given, or this process's for these options, loaded on first use."""
        return self._given or shared_encoder(self._config)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one unit vector per text, in order."""
        return self.encoder.encode_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the query's unit vector."""
        return self.encoder.encode_queries([text])[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return what `embed_documents` returns, without blocking the event loop."""
        encoder = await self._aencoder()
        return (await encoder.aencode_documents(texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """Return what `embed_query` returns, without blocking the event loop."""
        encoder = await self._aencoder()
        return (await encoder.aencode_queries([text]))[0].tolist()

    async def _aencoder(self) -> Encoder:
        return self._given or await asyncio.to_thread(shared_encoder, self._config)

    def __repr__(self) -> str:
        return f"Qwen3Embeddings({self._given or self._config!r})"
