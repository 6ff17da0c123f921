"""What computes a config's vectors: torch on a checkpoint, or a runtime on an exported graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ..errors import ConfigError
from .config import EncoderConfig, EngineConfig, RerankerConfig

if TYPE_CHECKING:
    from .loaded import LoadedModel
    from .pairs import PairTokenizer
    from .tokenizer import Tokenizer

L = TypeVar("L", "LoadedModel[Tokenizer]", "LoadedModel[PairTokenizer]")


class Backend(NamedTuple, Generic[L]):
    """How a config is resolved, and its model loaded."""

    resolve: Callable[[EngineConfig], EngineConfig]
    load: Callable[[EngineConfig], L]


def encoder_backend(config: EncoderConfig) -> Backend[LoadedModel[Tokenizer]]:
    """Return what `backend` names; "auto" is what the folder was made for, else torch.

    Raises ConfigError for a graph of another format, ModelLoadError where there is none.
    """
    from . import exported

    if config.backend == "torch" or (
        config.backend == "auto" and not exported.is_exported(config.model)
    ):
        from . import loading

        return Backend(loading.resolve, loading.load_model)
    made_for = exported.read_note(exported.locate_model(config.engine))["format"]
    if config.backend not in {"auto", made_for}:
        raise ConfigError(
            f"backend is {config.backend!r}, and {config.model} was exported for {made_for}; "
            "leave backend out"
        )
    return Backend(exported.resolve, exported.load_model)


def reranker_backend(config: RerankerConfig) -> Backend[LoadedModel[PairTokenizer]]:
    """Return torch's: no other runs rerankers."""
    from . import loading

    return Backend(loading.resolve, loading.load_reranker)
