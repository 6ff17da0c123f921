"""CachedEncoder: an encoder whose repeated texts are answered from stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from copy import copy
from functools import partial
from typing import Any

from ..contract import EmbeddingContract, Encoder, Vectors
from ..core.config import check_choice
from ..core.streaming import WINDOW, stream_windows
from ..core.workers import Workers
from ..errors import ConfigError, InputError
from .call import Cache
from .entry import STORAGES, Storage
from .layer import CacheStats, Store
from .memory import MemoryStore
from .road import Encode, Road, adrive, drive


class CachedEncoder:
    """An encoder that computes no text twice: the interface, vectors and errors of `encoder`.

    `stores` are asked in the order given (MemoryStore, DiskStore, RedisStore; without any: a
    MemoryStore of 256 MB); what a later one has is put into those before it. Queries, instructions,
    documents, models and everything else that changes a vector never mix; encoders that differ in
    dimensions alone share entries, cut where the stored vector is wider. Equal texts are computed
    once, also when several threads and coroutines ask at the same time. A store that fails, or an
    entry that is damaged, is a miss that `stats()` counts, never an error. `storage="float16"`
    halves every entry, for a rounding of 2**-11 of each component.

    >>> from qwen3_embedding_integrations import Qwen3Encoder
    >>> from qwen3_embedding_integrations.cache import CachedEncoder
    >>> with CachedEncoder(Qwen3Encoder("tiny")) as encoder:
    ...     first = encoder.encode_documents(["Paris is in France."])
    ...     again = encoder.encode_documents(["Paris is in France."])
    ...     (first == again).all(), encoder.stats().hits
    (np.True_, 1)
    """

    def __init__(self, encoder: Encoder, *stores: Store, storage: Storage = "float32") -> None:
        if isinstance(encoder, CachedEncoder):
            raise ConfigError("encoder is a CachedEncoder; give its stores to one CachedEncoder")
        for store in stores:
            if not all(hasattr(store, name) for name in ("get", "put", "close")):
                raise ConfigError(f"{store!r} is no store; give MemoryStore(), DiskStore(path) …")
        check_choice("storage", storage, STORAGES)
        self.encoder = encoder
        self._stores = stores or (MemoryStore(),)
        self._storage: Storage = storage
        self._cache = Cache(encoder, self._stores, storage)

    def encode_queries(
        self,
        queries: Sequence[str],
        *,
        instruction: str | None = None,
        show_progress: bool | None = None,
    ) -> Vectors:
        """Return one unit vector per query, (N, dimensions) float32, in the order given.

        Raises what the encoder raises, with the same indices.
        """
        return drive(self._queries(queries, instruction, show_progress))

    def encode_documents(
        self, documents: Sequence[str], *, show_progress: bool | None = None
    ) -> Vectors:
        """Return one unit vector per document, (N, dimensions) float32, in the order given.

        Raises what the encoder raises, with the same indices.
        """
        return drive(self._documents(documents, show_progress))

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        """Return what `encode_queries` returns, without blocking the event loop."""
        return await adrive(self._queries(queries, instruction))

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return what `encode_documents` returns, without blocking the event loop."""
        return await adrive(self._documents(documents))

    def stream_documents(
        self, documents: Iterable[str], *, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Yield the vectors of any iterable, window by window, each (up to `window`, dimensions).

        Two windows are under way at a time. A text that cannot be encoded raises InputError with
        its index in the whole stream, after the windows before it were yielded.
        """
        workers = Workers(2, "qwen3-cache")

        def submit(texts: list[str], first_index: int) -> tuple[int, Future[Vectors]]:
            encode = partial(self.encode_documents, texts, show_progress=False)
            return first_index, workers.submit(encode)

        return stream_windows(
            documents,
            window,
            submit=submit,
            result=lambda job: _window(*job),
            cancel=lambda job: job[1].cancel(),
        )

    @property
    def dimensions(self) -> int:
        """The width of the vectors."""
        return self.encoder.dimensions

    @property
    def contract(self) -> EmbeddingContract:
        """The encoder's contract: a cache changes nothing that an index must know."""
        return self.encoder.contract

    def stats(self) -> CacheStats:
        """Return what the cache and each of its stores have done; `.encoder` counts for itself."""
        return self._cache.stats()

    def close(self) -> None:
        """Close the encoder and the stores."""
        self._cache.is_closed = True
        close: Callable[[], object] = getattr(self.encoder, "close", object)
        close()
        for store in self._stores:
            store.close()

    def __enter__(self) -> CachedEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # config, max_length, model_dimensions, count_tokens, … : whatever else the encoder has.
        if name.startswith("_") or name == "encoder":
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.encoder, self._stores, self._storage)

    def __copy__(self) -> CachedEncoder:
        return self

    def __deepcopy__(self, memo: object) -> CachedEncoder:
        return self  # hosts copy their settings; the cache stays one

    def __repr__(self) -> str:
        return f"CachedEncoder({', '.join(map(repr, (self.encoder, *self._stores)))})"

    def _queries(
        self, queries: Sequence[str], instruction: str | None, show_progress: bool | None = None
    ) -> Road:
        return self._cache.road(queries, Encode(self.encoder, "query", instruction, show_progress))

    def _documents(self, documents: Sequence[str], show_progress: bool | None = None) -> Road:
        return self._cache.road(documents, Encode(self.encoder, "document", None, show_progress))


def _window(first_index: int, job: Future[Vectors]) -> Vectors:
    try:
        return job.result()
    except InputError as error:
        if error.index is None or not first_index:
            raise
        raise _moved(error, error.index, error.index + first_index) from None


def _moved(error: InputError, index: int, moved_index: int) -> InputError:
    """Return the error as the encoder's own stream would raise it: counted from its beginning."""
    moved = copy(error)
    moved.index = moved_index
    message = str(error)
    for here, there in (
        (f"documents[{index}] ", f"documents[{moved_index}] "),
        (f"text {index} ", f"text {moved_index} "),
    ):
        if message.startswith(here):
            message = there + message.removeprefix(here)
    moved.args = (message,)
    return moved


def _rebuild(encoder: Encoder, stores: tuple[Store, ...], storage: Storage) -> CachedEncoder:
    return CachedEncoder(encoder, *stores, storage=storage)
