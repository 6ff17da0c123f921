"""What an encoder and a reranker have in common: they hold one loaded model, closed and copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .core.calls import EngineCounts
    from .core.loading import LoadedModel


class Handle:
    """A loaded model's holder; a context manager that closes it."""

    _loaded: LoadedModel[Any]

    def engine_counts(self) -> EngineCounts:
        """Return what waits for the device now, and what its forwards have been so far."""
        return self._loaded.engine.counts()

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused: closed, or copied into another process by a fork."""
        return self._loaded.engine.is_closed

    def close(self) -> None:
        """Answer what runs, fail what waits with EngineClosedError, free the weights.

        Closing what `shared_encoder` or `shared_reranker` returned closes it for everyone who
        shares its weights; the next call of theirs loads them again.
        """
        self._loaded.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # hosts copy their settings; the weights stay one
