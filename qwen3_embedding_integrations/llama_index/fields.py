"""Fields that LlamaIndex's embedding model and reranker share: the options of the engine."""

from __future__ import annotations

from typing import Any, Literal

from llama_index.core.bridge.pydantic import BaseModel, Field

from ..core.config import (
    MAX_LENGTH,
    AttentionBackend,
    DType,
    EncoderConfig,
    Quantization,
    RerankerConfig,
)
from ..core.prompts import WEB_SEARCH
from ..errors import ConfigError


class EngineFields(BaseModel):
    """The options that `EncoderConfig` and `RerankerConfig` share, each a field."""

    revision: str | None = Field(default=None, description="Branch, tag or commit.")
    lora: str | None = Field(default=None, description="A LoRA adapter's folder or hub id.")
    device: str = Field(default="auto", description="'auto', 'cpu', 'mps' or 'cuda:N'.")
    dtype: DType = Field(default="auto", description="Number format of the weights.")
    quantization: Quantization | None = Field(
        default=None, description="'int8' on a CPU, 'fp8' on CUDA."
    )
    attention: AttentionBackend = Field(default="auto", description="Attention backend.")
    max_batch_tokens: int | Literal["auto"] = Field(
        default="auto", description="Tokens of one forward at most."
    )
    max_queue_tokens: int | None = Field(
        default=None, description="Tokens that may wait; more are refused."
    )
    local_files_only: bool = Field(default=False, description="Never ask the network.")
    instruction: str = Field(default=WEB_SEARCH, description="What queries are for.")
    max_length: int = Field(default=MAX_LENGTH, description="Tokens of a text at most.")


def fields_of(
    word: str, config: EncoderConfig | RerankerConfig, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of a ready model's config; `word` is what it was given as.

    Raises ConfigError where options are given beside it.
    """
    options = config.to_dict()
    options["model_name"] = options.pop("model")
    if both := sorted(set(options) & set(given)):
        raise ConfigError(
            f"give either {word} or options, not both ({', '.join(both)} with {word})"
        )
    return {**given, **options}
