"""shared_encoder, shared_reranker: one copy of the weights per process, also after a fork."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .core.config import EncoderConfig, EngineConfig, RerankerConfig
from .encoder import Qwen3Encoder
from .remote import RemoteEncoder
from .reranker import Qwen3Reranker

if TYPE_CHECKING:
    from .core.loaded import LoadedModel
    from .core.pairs import PairTokenizer
    from .core.tokenizer import Tokenizer

C = TypeVar("C", EncoderConfig, RerankerConfig)
M = TypeVar("M", Qwen3Encoder, Qwen3Reranker)
Resolve = Callable[[EngineConfig], EngineConfig]
L = TypeVar("L", "LoadedModel[Tokenizer]", "LoadedModel[PairTokenizer]")


@dataclass
class _Slot:
    """The one copy of the weights of an EngineConfig in this process, for one kind of model."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: Any = None  # L of the kind


@dataclass
class _Registry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    slots: dict[tuple[type, EngineConfig], _Slot] = field(
        default_factory=dict[tuple[type, EngineConfig], _Slot]
    )
    models: dict[EngineConfig, Any] = field(default_factory=dict[EngineConfig, Any])


_registry = _Registry()
_before_fork: list[_Registry] = []


@overload
def shared_encoder(config: str | None = None) -> Qwen3Encoder: ...
@overload
def shared_encoder(config: EncoderConfig) -> Qwen3Encoder | RemoteEncoder: ...
def shared_encoder(
    config: EncoderConfig | str | None = None,
) -> Qwen3Encoder | RemoteEncoder:
    """Return this process's encoder for `config`, loaded on the first call.

    Encoders that differ only in dimensions, instruction, max_length, on_too_long or on_empty share
    one copy of the weights and one queue. Safe in threads (one loads, the others wait) and after a
    fork (the child loads its own; with CUDA, start processes by spawn, as torch demands). A config
    with a `base_url` gives the RemoteEncoder that asks there, without torch.
    """
    config = EncoderConfig.of(config)
    if config.is_remote:
        return _remote_encoder(config)
    from .core.exported import encoder_backend

    return _shared(config, encoder_backend, Qwen3Encoder.over)


def shared_reranker(config: RerankerConfig | str | None = None) -> Qwen3Reranker:
    """Return this process's reranker for `config`, loaded on the first call.

    Rerankers that differ only in instruction, max_length or on_too_long share one copy of the
    weights and one queue. Safe in threads and after a fork, as `shared_encoder`.
    """
    from .core.loading import load_reranker, resolve

    return _shared(
        RerankerConfig.of(config), lambda _: (resolve, load_reranker), Qwen3Reranker.over
    )


def _shared(
    config: C,
    backend_of: Callable[[C], tuple[Resolve, Callable[[EngineConfig], L]]],
    over: Callable[[L, C], M],
) -> M:
    registry = _registry
    with registry.lock:
        model = registry.models.get(config)
        if model is not None and not model.is_closed:
            return model
    resolve, load = backend_of(config)
    engine_config = resolve(config.engine)  # "auto" and what it comes to are one engine
    with registry.lock:
        slot = registry.slots.setdefault((type(config), engine_config), _Slot())
    with slot.lock:  # its own: another model loads meanwhile
        if slot.loaded is None or slot.loaded.engine.is_closed:
            slot.loaded = load(engine_config)
        with registry.lock:
            model = registry.models.get(config)
            if model is None or model.is_closed:
                model = over(slot.loaded, config)
                registry.models[config] = model
            return model


def _remote_encoder(config: EncoderConfig) -> RemoteEncoder:
    registry = _registry
    with registry.lock:
        encoder = registry.models.get(config)
        if encoder is None or encoder.is_closed:
            encoder = registry.models[config] = RemoteEncoder.of(config)
        return encoder


def _forget_after_fork() -> None:
    # The parent's locks may have been copied locked, and its tensors are not the child's to free.
    global _registry  # noqa: PLW0603
    _before_fork.append(_registry)
    _registry = _Registry()
    # The tokenizers' thread pool stayed in the parent as well; asked for, it would hang.
    if "tokenizers" in sys.modules:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
