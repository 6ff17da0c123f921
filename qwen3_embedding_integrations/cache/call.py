"""One call: what the stores have, what must be encoded, what others are encoding."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..contract import Encoder, Vectors
from ..core.prompts import query_prompt
from ..errors import EngineClosedError, InputError
from .entry import Storage, Wanted, write_entry
from .flights import Flight, Flights, Rows
from .key import key_space, text_key
from .layer import CacheStats, Layer, Store
from .road import Aside, Encode, Road, Step, Wait

MAX_JOINS = 2  # rounds in which others are waited for; if they fail, a text is encoded apart


@dataclass(slots=True)
class _Call:
    """A call under way: its texts by key, and the rows found or made so far."""

    encode: Encode
    storage: Storage
    given: list[str]
    keys: list[bytes]  # in the order given
    texts: dict[bytes, str]  # each once
    rows: dict[bytes, Vectors] = field(default_factory=dict[bytes, Vectors])
    num_hits: int = 0
    num_encoded: int = 0

    def add_hits(self, rows: Rows) -> None:
        self.rows.update(rows)
        self.num_hits += len(rows)

    def entries(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: write_entry(key, self.rows[key], self.storage) for key in keys}


class Cache:
    """The stores of an encoder and the calls under way."""

    def __init__(self, encoder: Encoder, stores: Sequence[Store], storage: Storage) -> None:
        self.is_closed = False
        self._encoder = encoder
        self._storage: Storage = storage
        self._layers = [Layer(store) for store in stores]
        self._flights = Flights()
        self._lock = threading.Lock()
        self._num_texts = self._num_hits = self._num_encoded = 0

    def stats(self) -> CacheStats:
        """Return the counts so far."""
        stores = tuple(layer.stats() for layer in self._layers)
        with self._lock:
            texts, hits, encoded = self._num_texts, self._num_hits, self._num_encoded
        return CacheStats(texts, hits, texts - hits - encoded, encoded, stores)

    def road(self, texts: Sequence[str], encode: Encode) -> Road:
        """Look in the stores, encode what nobody else is encoding, wait for what others are."""
        if self.is_closed:
            raise EngineClosedError("the cached encoder was closed; make a new one")
        call: _Call | None = yield Aside(lambda: self._begin(texts, encode))
        if call is None:  # an error of the encoder's own, most likely; nothing to keep
            vectors: Vectors = yield encode._replace(texts=texts)
            self._count(len(vectors), num_encoded=len(vectors))
            return vectors
        joins_left = MAX_JOINS
        while missing := [key for key in call.texts if key not in call.rows]:
            if not joins_left:
                yield from self._encode(call, missing)
                yield Aside(lambda keys=missing: self._keep(call.entries(keys), self._layers))
                break
            flight, others = self._flights.claim(missing)
            yield from self._fly(call, flight)
            joins_left -= 1
            for other in others:
                landed: Rows | None = yield Wait(other)
                call.rows.update((k, landed[k]) for k in missing if landed and k in landed)
        self._count(len(call.keys), num_hits=call.num_hits, num_encoded=call.num_encoded)
        return np.stack([call.rows[key] for key in call.keys])

    def _fly(self, call: _Call, flight: Flight) -> Generator[Step, Any, None]:
        """Encode what the flight has claimed, then let its waiters go."""
        left: list[bytes] = []
        try:
            if not flight.keys:
                return
            # Between the first look and the claim another call may have brought it.
            again: Rows = yield Aside(lambda: self._look_again(flight.keys))
            call.add_hits(again)
            if left := [key for key in flight.keys if key not in again]:
                yield from self._encode(call, left)
                yield Aside(lambda: self._keep(call.entries(left), self._layers[:1]))
            self._flights.land(flight, call.rows)
        finally:
            self._flights.fail(flight)
        if left and len(self._layers) > 1:
            yield Aside(lambda: self._keep(call.entries(left), self._layers[1:]))

    def _encode(self, call: _Call, keys: list[bytes]) -> Generator[Step, Any, None]:
        """Add the rows of these keys to the call."""
        texts = [call.texts[key] for key in keys]
        vectors: Vectors | None = None
        try:
            vectors = yield call.encode._replace(texts=texts)
        except InputError:
            if texts == call.given:
                raise
        if vectors is None:
            # Its index counts in what we passed; of all the caller's texts, it is the caller's.
            whole: Vectors = yield call.encode._replace(texts=call.given)
            place = {key: index for index, key in enumerate(call.keys)}
            vectors = whole[[place[key] for key in keys]]
        call.rows.update(zip(keys, vectors, strict=True))
        call.num_encoded += len(keys)

    def _begin(self, texts: Sequence[str], encode: Encode) -> _Call | None:
        """Return the call with what the stores have, or None where the encoder must be asked."""
        instruction = encode.instruction
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str | bytes | bytearray)
        if not is_list or not len(texts) or not all(isinstance(text, str) for text in texts):
            return None
        if instruction is not None and not (isinstance(instruction, str) and instruction.strip()):
            return None
        # Whether a blank text is an error is the encoder's to say: no entry may answer for it.
        embeds_blank = getattr(getattr(self._encoder, "config", None), "on_empty", "") == "embed"
        if not embeds_blank and not all(text.strip() for text in texts):
            return None
        given = list(texts)
        contract = self._encoder.contract
        prompt = None
        if encode.role == "query":
            prompt = query_prompt(contract.instruction if instruction is None else instruction)
        space = key_space(contract, prompt)
        try:
            keys = [text_key(space, text) for text in given]
        except UnicodeEncodeError:
            return None
        call = _Call(encode, self._storage, given, keys, dict(zip(keys, given, strict=True)))
        call.add_hits(self._look(list(call.texts)))
        return call

    def _look(self, keys: list[bytes]) -> Rows:
        rows: dict[bytes, Vectors] = {}
        for depth, layer in enumerate(self._layers):
            missing = [key for key in keys if key not in rows]
            if not missing:
                break
            found, entries = layer.find(missing, self._wanted())
            self._keep(entries, self._layers[:depth])
            rows.update(found)
        return rows

    def _look_again(self, keys: list[bytes]) -> Rows:
        found, _ = self._layers[0].find(keys, self._wanted(), is_second_look=True)
        return found

    def _keep(self, entries: dict[bytes, bytes], layers: Sequence[Layer]) -> None:
        for layer in layers:
            layer.keep(entries)

    def _wanted(self) -> Wanted:
        return Wanted(self._encoder.dimensions, self._storage)

    def _count(self, num_texts: int, *, num_hits: int = 0, num_encoded: int = 0) -> None:
        with self._lock:
            self._num_texts += num_texts
            self._num_hits += num_hits
            self._num_encoded += num_encoded
