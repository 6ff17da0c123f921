"""shared_encoder: one copy of the weights per process, whoever asks, also after a fork."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from .core.config import EncoderConfig, EngineConfig
from .encoder import Qwen3Encoder
from .remote import RemoteEncoder

if TYPE_CHECKING:
    from .core.loading import LoadedModel


@dataclass
class _Slot:
    """The one copy of the weights of an EngineConfig in this process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: LoadedModel | None = None


@dataclass
class _Registry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    slots: dict[EngineConfig, _Slot] = field(default_factory=dict[EngineConfig, _Slot])
    encoders: dict[EncoderConfig, Qwen3Encoder] = field(
        default_factory=dict[EncoderConfig, Qwen3Encoder]
    )
    remote: dict[EncoderConfig, RemoteEncoder] = field(
        default_factory=dict[EncoderConfig, RemoteEncoder]
    )


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
    if config.base_url is not None:
        return _remote_encoder(config)
    from .core.loading import load_model, resolve

    registry = _registry
    with registry.lock:
        encoder = registry.encoders.get(config)
        if encoder is not None and not encoder.is_closed:
            return encoder
    engine_config = resolve(config.engine)  # "auto" and what it comes to are one engine
    with registry.lock:
        slot = registry.slots.setdefault(engine_config, _Slot())
    with slot.lock:  # its own: another model loads meanwhile
        if slot.loaded is None or slot.loaded.engine.is_closed:
            slot.loaded = load_model(engine_config)
        with registry.lock:
            encoder = registry.encoders.get(config)
            if encoder is None or encoder.is_closed:
                encoder = Qwen3Encoder.over(slot.loaded, config)
                registry.encoders[config] = encoder
            return encoder


def _remote_encoder(config: EncoderConfig) -> RemoteEncoder:
    registry = _registry
    with registry.lock:
        encoder = registry.remote.get(config)
        if encoder is None or encoder.is_closed:
            encoder = registry.remote[config] = RemoteEncoder.of(config)
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
