"""Qwen3Embedding: an embedding model of LlamaIndex."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.storage.kvstore.types import BaseKVStore

from ..cache import CachedEncoder
from ..contract import Encoder
from ..core.config import DEFAULT_MODEL, BackendName, EncoderConfig
from ..encoder import Qwen3Encoder
from ..remote import RemoteEncoder
from ..sharing import shared_encoder
from .fields import EngineFields, fields_of


class Qwen3Embedding(EngineFields, BaseEmbedding):
    """Qwen3-Embedding for LlamaIndex: texts bare, queries behind the instruction.

    The options are `EncoderConfig`'s, by name, but for `model_name`, LlamaIndex's word for the
    model; or give a ready `encoder`. Every option is a field, so that pickling, `to_dict` and
    pipeline caches keep all that changes a vector. An `embeddings_cache` never mixes queries with
    texts, nor vectors of different models or options.

    >>> from qwen3_embedding_integrations.llama_index import Qwen3Embedding
    >>> embed_model = Qwen3Embedding(model_name="tiny", dimensions=128)
    >>> len(embed_model.get_query_embedding("How do I reset my password?"))
    128
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default=DEFAULT_MODEL, description="Hub id, folder or 'tiny'.")
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Texts of one call.")
    dimensions: int | None = Field(default=None, description="Width of the vectors.")
    on_too_long: Literal["truncate", "error", "chunk_mean"] = Field(
        default="truncate", description="What to do with texts beyond max_length."
    )
    on_empty: Literal["error", "embed"] = Field(
        default="error", description="What to do with empty and blank texts."
    )
    base_url: str | None = Field(default=None, description="A server to ask instead.")
    api_key_env: str | None = Field(default=None, description="The variable with its key.")
    backend: BackendName = Field(default="auto", description="What computes: torch, or a runtime.")

    _given: Qwen3Encoder | RemoteEncoder | CachedEncoder | None = PrivateAttr(default=None)

    def __init__(
        self, *, encoder: Qwen3Encoder | RemoteEncoder | CachedEncoder | None = None, **fields: Any
    ) -> None:
        if encoder is not None:
            fields = fields_of("encoder", encoder.config, fields)
        super().__init__(**fields)
        self._given = encoder
        self.config()  # a value no encoder can have is refused now

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The host makes the object anew from its fields alone; a cache goes on with its stores.
        self._given = (state.get("__pydantic_private__") or {}).get("_given")

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this class under."""
        return "Qwen3Embedding"

    def config(self) -> EncoderConfig:
        """Return these options as an EncoderConfig."""
        options = {name: getattr(self, name) for name in EncoderConfig.option_names()[1:]}
        return EncoderConfig(model=self.model_name, **options)

    @property
    def encoder(self) -> Encoder:
        """The encoder given, or this process's for these options, loaded on first use."""
        given, config = self._given, self.config()
        # A field assigned later counts: what is serialised is what makes the vectors.
        return given if given is not None and given.config == config else shared_encoder(config)

    async def _aencoder(self) -> Encoder:
        return await asyncio.to_thread(lambda: self.encoder)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.encoder.encode_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await (await self._aencoder()).aencode_queries([query]))[0].tolist()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self.encoder.encode_documents(texts).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return (await (await self._aencoder()).aencode_documents(texts)).tolist()

    # LlamaIndex's cache keys on the text alone: a query would be answered with the vector of the
    # same text as a document, or of another model (llama_index#23181). So each public road runs on
    # a copy of this object whose cache is a namespace of role and contract.

    def get_query_embedding(self, query: str) -> Embedding:
        """Return the query's unit vector."""
        return super(Qwen3Embedding, self._with_role("query")).get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Return the query's unit vector, without blocking the event loop."""
        copy = await self._awith_role("query")
        return await super(Qwen3Embedding, copy).aget_query_embedding(query)

    def get_text_embedding(self, text: str) -> Embedding:
        """Return the text's unit vector."""
        return super(Qwen3Embedding, self._with_role("text")).get_text_embedding(text)

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Return the text's unit vector, without blocking the event loop."""
        copy = await self._awith_role("text")
        return await super(Qwen3Embedding, copy).aget_text_embedding(text)

    def _get_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        return super(Qwen3Embedding, self._with_role("text"))._get_text_embeddings_cached(texts)

    async def _aget_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        copy = await self._awith_role("text")
        return await super(Qwen3Embedding, copy)._aget_text_embeddings_cached(texts)

    def _with_role(self, role: str) -> Qwen3Embedding:
        store = self.embeddings_cache
        if store is None or isinstance(store, _RoleStore):
            return self
        contract = self.encoder.contract
        facts = [contract.fingerprint, contract.dtype, str(contract.max_length), self.on_too_long]
        facts += [self.instruction] if role == "query" else []
        namespace = ":".join(["qwen3_embedding", role, *facts])
        return self.model_copy(update={"embeddings_cache": _RoleStore(store, namespace)})

    async def _awith_role(self, role: str) -> Qwen3Embedding:
        if self.embeddings_cache is None:
            return self
        return await asyncio.to_thread(self._with_role, role)


class _RoleStore(BaseKVStore):
    """A namespace of a key-value store, in place of the collection LlamaIndex names."""

    def __init__(self, store: BaseKVStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    def put(self, key: str, val: dict[str, Any], collection: str = "") -> None:
        self._store.put(key, val, self._namespace)

    async def aput(self, key: str, val: dict[str, Any], collection: str = "") -> None:
        await self._store.aput(key, val, self._namespace)

    def get(self, key: str, collection: str = "") -> dict[str, Any] | None:
        return self._store.get(key, self._namespace)

    async def aget(self, key: str, collection: str = "") -> dict[str, Any] | None:
        return await self._store.aget(key, self._namespace)

    def get_all(self, collection: str = "") -> dict[str, dict[str, Any]]:
        return self._store.get_all(self._namespace)

    async def aget_all(self, collection: str = "") -> dict[str, dict[str, Any]]:
        return await self._store.aget_all(self._namespace)

    def delete(self, key: str, collection: str = "") -> bool:
        return self._store.delete(key, self._namespace)

    async def adelete(self, key: str, collection: str = "") -> bool:
        return await self._store.adelete(key, self._namespace)
