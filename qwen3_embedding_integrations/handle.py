"""What encoders and rerankers have in common: closed and copied, texts in, one loaded model."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from .core.config import EncoderConfig, RerankerConfig, check_instruction, fit_length
from .core.prompts import query_prompt
from .core.streaming import WINDOW, Vectors, stream_windows

if TYPE_CHECKING:
    from .core.calls import EngineCounts
    from .core.loaded import LoadedModel

C = TypeVar("C", EncoderConfig, RerankerConfig)
J = TypeVar("J")  # a call under way


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


class TextEncoder(Held, Generic[J]):
    """Queries behind their instruction and documents bare, whoever computes their vectors."""

    config: EncoderConfig

    def encode_queries(
        self,
        queries: Sequence[str],
        *,
        instruction: str | None = None,
        show_progress: bool | None = None,
    ) -> Vectors:
        """Return one unit vector per query, (N, dimensions) float32, in the order given.

        Each query is read behind the instruction (`instruction`, else the config's). Symmetric
        tasks (similarity, classification) encode both sides with this method. Raises InputError
        for a text that cannot be encoded, EngineError when the device fails, RemoteError when the
        server does, NonFiniteOutputError for NaN.
        """
        job = self._submit(queries, "queries", self._prompt(instruction))
        return self._result(job, show_progress)

    def encode_documents(
        self, documents: Sequence[str], *, show_progress: bool | None = None
    ) -> Vectors:
        """Return one unit vector per document, (N, dimensions) float32, in the order given.

        `show_progress=None` draws a bar on a terminal when the call takes long. Raises as
        `encode_queries`.
        """
        return self._result(self._submit(documents, "documents"), show_progress)

    def stream_documents(
        self, documents: Iterable[str], *, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Yield the vectors of any iterable, window by window, each (up to `window`, dimensions).

        While you use one window, the next is encoded; no more than two are held, so an endless
        iterable needs little memory. A text that cannot be encoded raises InputError with its
        index in the whole stream, after the windows before it were yielded.
        """
        return stream_windows(
            documents,
            window,
            submit=lambda texts, first: self._submit(texts, "documents", first_index=first),
            result=self._result,
            cancel=self._cancel,
        )

    def _prompt(self, instruction: str | None) -> str:
        if instruction is not None:
            check_instruction(instruction)
        return query_prompt(self.config.instruction if instruction is None else instruction)

    @abstractmethod
    def _submit(self, texts: Sequence[Any], word: str, prompt: str = "", first_index: int = 0) -> J:
        """Begin to encode texts behind a prompt; the first one's index in messages is given."""

    @abstractmethod
    def _result(self, job: J, show_progress: bool | None = False) -> Vectors:
        """Wait for a call's vectors."""

    @abstractmethod
    def _cancel(self, job: J) -> None:
        """Drop what of a call has not run yet."""


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
