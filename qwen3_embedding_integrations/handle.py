"""What encoders and rerankers have in common: they are closed and copied; Handle holds a model."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from .core.config import EncoderConfig, RerankerConfig, fit_length

if TYPE_CHECKING:
    from .core.calls import EngineCounts
    from .core.loaded import LoadedModel

C = TypeVar("C", EncoderConfig, RerankerConfig)


class Held(ABC):
    """What is closed at the end of a `with`, and stays one wherever it is copied."""

    @abstractmethod
    def close(self) -> None:
        """Refuse calls from now on, and free what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # hosts copy their settings; weights, connections and caches stay one


class Handle(Held, Generic[C]):
    """A loaded model's holder."""

    config: C
    max_length: int

    @classmethod
    def over(cls, loaded: LoadedModel[Any], config: C) -> Self:
        """Return one that shares a loaded model; see `shared_encoder` and `shared_reranker`."""
        one = cls.__new__(cls)
        one._init(config, loaded)
        return one

    def _own(self, config: C, loaded: LoadedModel[Any]) -> None:
        """Hold a model that was loaded for this object alone."""
        try:
            self._init(config, loaded)
        except BaseException:
            loaded.engine.close()
            raise
        # What nobody holds any more ends its thread and frees its weights.
        weakref.finalize(self, loaded.engine.stop).atexit = False

    def _init(self, config: C, loaded: LoadedModel[Any]) -> None:
        """Hold a model; refuse a `max_length` that it cannot read or has no room for."""
        max_length = fit_length(config, loaded.architecture.max_positions)
        for room in loaded.rooms:  # now, not after hours, at the first text so long
            room.check_length(max_length)
        self.config = config
        self.max_length = max_length
        self._loaded = loaded
        self._counts_lock = threading.Lock()

    def engine_counts(self) -> EngineCounts:
        """Return what waits for the device now, and what its forwards have been so far."""
        return self._loaded.engine.counts()

    @property
    def content_hash(self) -> str:
        """A hash of the model's files, the same wherever they lie; the first access reads them."""
        return self._loaded.content_hash

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused: closed, or copied into another process by a fork."""
        return self._loaded.is_closed

    def close(self) -> None:
        """Answer what runs, fail what waits with EngineClosedError, free the weights.

        Closing what `shared_encoder` or `shared_reranker` returned closes it for everyone who
        shares its weights; the next call of theirs loads them again.
        """
        self._loaded.engine.close()
