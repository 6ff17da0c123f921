"""shared_encoder, shared_reranker: one copy of the weights per process, also after a fork."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from .core.config import EncoderConfig, RerankerConfig
from .encoder import Qwen3Encoder
from .remote import RemoteEncoder
from .reranker import Qwen3Reranker

T = TypeVar("T")


@dataclass
class _Slot:
    """The one thing of its key in this process, and who may make it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    held: Any = None

    def let_go_if_closed(self) -> None:
        """Free what nobody can use any more, a tokenizer of 30 MB say; not while it is made."""
        if self.lock.acquire(blocking=False):
            try:
                if self.held is not None and self.held.is_closed:
                    self.held = None
            finally:
                self.lock.release()


@dataclass
class _Registry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    slots: dict[Hashable, _Slot] = field(default_factory=dict[Hashable, _Slot])


_registry = _Registry()
_before_fork: list[_Registry] = []


@overload
def shared_encoder(config: str | None = None) -> Qwen3Encoder: ...
@overload
def shared_encoder(config: EncoderConfig) -> Qwen3Encoder | RemoteEncoder: ...
def shared_encoder(config: EncoderConfig | str | None = None) -> Qwen3Encoder | RemoteEncoder:
    """Return this process's encoder for `config`, loaded on the first call.

    Encoders that differ only in dimensions, instruction, max_length, on_too_long or on_empty share
    one copy of the weights and one queue. Safe in threads (one loads, the others wait) and after a
    fork (the child loads its own; with CUDA, start processes by spawn, as torch demands). A config
    with a `base_url` gives the RemoteEncoder that asks there, without torch.
    """
    config = EncoderConfig.of(config)
    if config.is_remote:
        return _kept(config, lambda: RemoteEncoder.of(config))

    def make() -> Qwen3Encoder:
        from .core.exported import encoder_backend

        resolve, load = encoder_backend(config)
        engine = resolve(config.engine)  # "auto" and what it comes to are one engine
        loaded = _kept(("encoder", engine), lambda: load(engine))
        return Qwen3Encoder.over(loaded, config)

    return _kept(config, make)


def shared_reranker(config: RerankerConfig | str | None = None) -> Qwen3Reranker:
    """Return this process's reranker for `config`, loaded on the first call.

    Rerankers that differ only in instruction, max_length or on_too_long share one copy of the
    weights and one queue. Safe in threads and after a fork, as `shared_encoder`.
    """
    config = RerankerConfig.of(config)

    def make() -> Qwen3Reranker:
        from .core.loading import load_reranker, resolve

        engine = resolve(config.engine)
        loaded = _kept(("reranker", engine), lambda: load_reranker(engine))
        return Qwen3Reranker.over(loaded, config)

    return _kept(config, make)


def _kept(key: Hashable, make: Callable[[], T]) -> T:
    """Return what has this key, made by whoever asks first; the others of the key wait."""
    registry = _registry
    with registry.lock:
        slot = registry.slots.setdefault(key, _Slot())
        slots = list(registry.slots.values())
    for one in slots:
        one.let_go_if_closed()
    with slot.lock:  # its own: another model loads meanwhile
        if slot.held is None or slot.held.is_closed:
            slot.held = make()
        return slot.held


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
