"""What is served and within which limits: ServedModel, ServerConfig."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.config import EncoderConfig, RerankerConfig, check_range, check_type
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..contract import Encoder
    from ..reranker import Qwen3Reranker

Kind = Literal["embedding", "reranking"]


@dataclass(frozen=True)
class ServedModel:
    """A name, and how to load what answers under it.

    `load` is called on a thread, at the start and again after an idle unload. It returns any
    Encoder (a Qwen3Encoder, a CachedEncoder over one, …) or a Qwen3Reranker.
    """

    name: str
    kind: Kind
    load: Callable[[], Encoder | Qwen3Reranker]
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            if not name or name != name.strip() or not name.isprintable():
                raise ConfigError(f"{name!r} cannot be a model's name; give printable characters")

    @classmethod
    def embedding(
        cls, config: EncoderConfig | str, *, name: str | None = None, aliases: tuple[str, ...] = ()
    ) -> ServedModel:
        """Return an embedding model with its own weights; a folder is called by its last part."""
        from ..encoder import Qwen3Encoder

        config = EncoderConfig.of(config)
        load = partial(Qwen3Encoder, config)
        return cls(name or _name(config.model), "embedding", load, aliases)

    @classmethod
    def reranking(
        cls, config: RerankerConfig | str, *, name: str | None = None, aliases: tuple[str, ...] = ()
    ) -> ServedModel:
        """Return a reranker with its own weights; a folder is called by its last part."""
        from ..reranker import Qwen3Reranker

        config = RerankerConfig.of(config)
        load = partial(Qwen3Reranker, config)
        return cls(name or _name(config.model), "reranking", load, aliases)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits and times; checked when made (ConfigError)."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of these in `Authorization: Bearer …`; without any, everyone may ask."""
    keep_alive_s: float | None = None
    """Seconds after its last request until a model is unloaded; None keeps it for ever."""
    max_body_bytes: int = 8 * 2**20
    """Bytes of a request's body."""
    max_texts: int = 2048
    """Texts, or documents, of a request (2,048 is OpenAI's own limit)."""
    max_tokens: int = 300_000
    """Tokens of a request, after truncation (300,000 is OpenAI's own limit)."""
    max_requests: int = 1024
    """Requests under way; the next one gets a 429."""
    body_timeout_s: float = 30.0
    """Seconds until a body must be there; a client that stalls gets a 408."""

    def __post_init__(self) -> None:
        for key in self.api_keys:
            check_type("an API key", key, str)
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("an API key is empty, or holds more than printable ASCII")
        check_range("max_body_bytes", self.max_body_bytes, 1, 2**40)
        check_range("max_texts", self.max_texts, 1, 1_000_000)
        check_range("max_tokens", self.max_tokens, 1, 1_000_000_000)
        check_range("max_requests", self.max_requests, 1, 1_000_000)
        for name in ("keep_alive_s", "body_timeout_s"):
            seconds = getattr(self, name)
            if seconds is None and name == "keep_alive_s":
                continue
            if not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise ConfigError(f"{name} is {seconds!r}; give seconds, more than 0")


def _name(model: str) -> str:
    """Return what a model is called by clients: the hub's id, or a folder's last part."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model
