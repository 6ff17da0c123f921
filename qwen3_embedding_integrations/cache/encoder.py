"""CachedEncoder: an encoder whose repeated texts are answered from stores."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from ..contract import EmbeddingContract, Encoder, Vectors
from ..core.config import check_choice, check_instruction
from ..core.prompts import query_prompt
from ..core.streaming import WINDOW, stream_windows
from ..core.texts import InputRules, check_texts
from ..core.workers import Workers
from ..errors import ConfigError, EngineClosedError, InputError
from ..handle import Held
from .entry import STORAGES, Storage, key_space, text_key, write_entry
from .flights import Flight, Flights, Way
from .layer import CacheStats, Layer
from .stores import MemoryStore, Store

MAX_JOINS = 2  # rounds in which others are waited for; if they fail, a text is encoded apart


@dataclass(slots=True)
class _Call:
    """A call under way: its texts by key, and the rows found or made so far."""

    way: Way
    keys: list[bytes]  # in the order given
    texts: dict[bytes, str]  # each once
    rows: dict[bytes, Vectors] = field(default_factory=dict[bytes, Vectors])
    num_hits: int = 0
    num_asked: int = 0  # texts that the encoder was given last
    num_encoded: int = 0

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        return [key for key in keys if key not in self.rows]


class CachedEncoder(Held):
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
        # Not every encoder does; asked once: a hit takes no longer than asking.
        self._takes_progress = "show_progress" in signature(encoder.encode_documents).parameters
        self._storage: Storage = storage
        self._layers = [Layer(store) for store in stores or (MemoryStore(),)]
        self._flights = Flights()
        self._is_closed = False
        self._lock = threading.Lock()
        self._num_texts = self._num_hits = self._num_encoded = 0

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
        options = {"instruction": instruction, **self._progress(show_progress)}
        way = Way(partial(self.encoder.encode_queries, **options))
        return way.finish(self._vectors(queries, way, is_query=True, instruction=instruction))

    def encode_documents(
        self, documents: Sequence[str], *, show_progress: bool | None = None
    ) -> Vectors:
        """Return one unit vector per document, (N, dimensions) float32, in the order given.

        Raises what the encoder raises, with the same indices.
        """
        way = Way(partial(self.encoder.encode_documents, **self._progress(show_progress)))
        return way.finish(self._vectors(documents, way))

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        """Return what `encode_queries` returns, without blocking the event loop."""
        way = Way(partial(self.encoder.aencode_queries, instruction=instruction), is_async=True)
        return await self._vectors(queries, way, is_query=True, instruction=instruction)

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return what `encode_documents` returns, without blocking the event loop."""
        return await self._vectors(documents, Way(self.encoder.aencode_documents, is_async=True))

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
            documents, window, submit=submit, result=_result, cancel=lambda job: job[1].cancel()
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
        stores = tuple(layer.stats() for layer in self._layers)
        with self._lock:
            texts, hits, encoded = self._num_texts, self._num_hits, self._num_encoded
        return CacheStats(texts, hits, texts - hits - encoded, encoded, stores)

    def close(self) -> None:
        """Close the encoder and the stores."""
        self._is_closed = True
        close: Callable[[], object] = getattr(self.encoder, "close", object)
        close()
        for layer in self._layers:
            layer.store.close()

    def __getattr__(self, name: str) -> Any:
        # config, max_length, model_dimensions, count_tokens, … : whatever else the encoder has.
        if name.startswith("_") or name == "encoder":
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def __reduce__(self) -> tuple[Any, ...]:
        stores = (layer.store for layer in self._layers)
        return partial(CachedEncoder, storage=self._storage), (self.encoder, *stores)

    def __repr__(self) -> str:
        stores = (layer.store for layer in self._layers)
        return f"CachedEncoder({', '.join(map(repr, (self.encoder, *stores)))})"

    def _progress(self, show_progress: bool | None) -> dict[str, Any]:
        return {"show_progress": show_progress} if self._takes_progress else {}

    # One call, written once: on a thread its steps are taken as they come, on a loop awaited.

    async def _vectors(
        self,
        texts: Sequence[str],
        way: Way,
        *,
        is_query: bool = False,
        instruction: str | None = None,
    ) -> Vectors:
        if self._is_closed:
            raise EngineClosedError("the cached encoder was closed; make a new one")
        call = await way.aside(lambda: self._begin(texts, way, is_query, instruction))
        if call is not None:
            try:
                return await self._answer(call)
            except InputError:
                if call.num_asked == len(call.keys):
                    raise
                # Its index counts in what was asked; of all the caller's texts, it is the caller's.
        vectors = await way.encode(texts)
        self._count(len(vectors), num_encoded=len(vectors))
        return vectors

    def _begin(
        self, texts: Sequence[str], way: Way, is_query: bool, instruction: str | None
    ) -> _Call | None:
        """Return the call with what the stores have, or None where the error is the encoder's."""
        on_empty = getattr(getattr(self.encoder, "config", None), "on_empty", "error")
        rules = InputRules(max_length=0, on_too_long="", on_empty=on_empty)
        try:
            check_texts(texts, "documents", rules)
            if instruction is not None:
                check_instruction(instruction)
        except (TypeError, InputError, ConfigError):
            return None
        if not len(texts):
            return None
        contract = self.encoder.contract
        prompt = query_prompt(contract.instruction if instruction is None else instruction)
        space = key_space(contract, prompt if is_query else None)
        keys = [text_key(space, text) for text in texts]
        call = _Call(way, keys, dict(zip(keys, texts, strict=True)))
        self._look(call, list(call.texts), self._layers)
        call.num_hits = len(call.rows)
        return call

    async def _answer(self, call: _Call) -> Vectors:
        """Encode what nobody else is encoding, wait for what others are."""
        for _ in range(MAX_JOINS):
            if not (missing := call.missing(call.texts)):
                break
            flight, others = self._flights.claim(missing)
            await self._fly(call, flight)
            for other in others:
                landed = await call.way.wait(other)
                call.rows.update((key, landed[key]) for key in missing if key in landed)
        await self._encode(call, call.missing(call.texts))
        self._count(len(call.keys), num_hits=call.num_hits, num_encoded=call.num_encoded)
        return np.stack([call.rows[key] for key in call.keys])

    async def _fly(self, call: _Call, flight: Flight) -> None:
        """Encode what the flight has claimed, and let its waiters go, whatever happens."""
        try:
            if flight.keys:
                # Between the first look and the claim another call may have brought it.
                await call.way.aside(lambda: self._look(call, flight.keys, self._layers[:1]))
                await self._encode(call, call.missing(flight.keys))
        finally:
            self._flights.end(flight, {k: call.rows[k] for k in flight.keys if k in call.rows})

    async def _encode(self, call: _Call, keys: list[bytes]) -> None:
        """Encode the texts of these keys, and keep what comes."""
        if not keys:
            return
        call.num_asked = len(keys)
        vectors = await call.way.encode([call.texts[key] for key in keys])
        call.rows.update(zip(keys, vectors, strict=True))
        call.num_encoded += len(keys)
        entries = {key: write_entry(key, call.rows[key], self._storage) for key in keys}
        await call.way.aside(lambda: [layer.keep(entries) for layer in self._layers])

    def _look(self, call: _Call, keys: list[bytes], layers: list[Layer]) -> None:
        """Add what the layers have; what a later one has is put into those before it."""
        is_first_look = layers is self._layers
        for depth, layer in enumerate(layers):
            if not (missing := call.missing(keys)):
                return
            dimensions = self.encoder.dimensions
            found, entries = layer.find(missing, dimensions, self._storage, is_first_look)
            for upper in layers[:depth]:
                upper.keep(entries)
            call.rows.update(found)

    def _count(self, num_texts: int, *, num_hits: int = 0, num_encoded: int = 0) -> None:
        with self._lock:
            self._num_texts += num_texts
            self._num_hits += num_hits
            self._num_encoded += num_encoded


def _result(job: tuple[int, Future[Vectors]]) -> Vectors:
    """Return a window's vectors; an error is counted from the beginning of the stream."""
    first_index, future = job
    try:
        return future.result()
    except InputError as error:
        if error.index is None:
            raise
        moved = copy(error)
        moved.index = error.index + first_index
        moved.args = (re.sub(rf"\b{error.index}\b", str(moved.index), str(error), count=1),)
        raise moved from None
