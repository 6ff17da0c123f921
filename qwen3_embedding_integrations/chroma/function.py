"""Qwen3EmbeddingFunction: what Chroma calls to embed documents and queries."""

from __future__ import annotations

from typing import Any, Unpack

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from ..cache import CachedEncoder
from ..core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions
from ..encoder import Qwen3Encoder
from ..remote import RemoteEncoder
from ..sharing import shared_encoder

NAME = "qwen3_embedding"  # stored in users' collections: never change it


@register_embedding_function
class Qwen3EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds a collection's documents bare and its queries behind the instruction.

    Takes every option of `EncoderConfig` by name. Chroma keeps the options with the collection and
    builds this object anew whenever it opens one, so making one is free: the model loads with the
    first text, once per process. The device is not kept: a collection made on a GPU opens on a CPU.
    Of a server (`base_url`) the address is kept and the name of its key's variable, never the key.

    >>> import chromadb
    >>> from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction
    >>> function = Qwen3EmbeddingFunction("tiny", dimensions=128)
    >>> client = chromadb.EphemeralClient()
    >>> articles = client.create_collection("articles", embedding_function=function)

    To open a collection in another program, import this module first: Chroma finds the function by
    its registered name.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Unpack[EncoderOptions]) -> None:
        self._config = EncoderConfig.from_options(model, **options)
        self._given: Qwen3Encoder | RemoteEncoder | CachedEncoder | None = None

    @classmethod
    def over(cls, encoder: Qwen3Encoder | RemoteEncoder | CachedEncoder) -> Qwen3EmbeddingFunction:
        """Return the function of a ready encoder, such as a CachedEncoder.

        Chroma keeps its options alone: a collection opened without this object gets the same
        vectors from the plain encoder.
        """
        function = cls(**encoder.config.to_dict())
        function._given = encoder
        return function

    def __call__(self, input: Documents) -> Embeddings:  # the name `input` is Chroma's contract
        """Return one unit vector per document, a list of (dimensions,) float32 arrays."""
        return list(self.encoder.encode_documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # the name `input` is Chroma's contract
        """Return one unit vector per query, a list of (dimensions,) float32 arrays."""
        return list(self.encoder.encode_queries(input))

    @property
    def encoder(self) -> Qwen3Encoder | RemoteEncoder | CachedEncoder:
        """The encoder given, or this process's for these options, loaded on first use."""
        return self._given or shared_encoder(self._config)

    @staticmethod
    def name() -> str:
        """Return the name Chroma keeps in every collection."""
        return NAME

    def default_space(self) -> Space:
        """Return the distance of collections that name none."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return the distances that rank unit vectors: all three agree."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma keeps: every option but the device."""
        # An error here would make Chroma forget the function, so nothing is loaded.
        return self._config.portable()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Qwen3EmbeddingFunction:
        """Return the function of a kept configuration."""
        return Qwen3EmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ConfigError for a configuration this class would not make."""
        EncoderConfig.from_options(**config)
