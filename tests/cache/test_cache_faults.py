"""Stores that fail: every vector right, no error, and no price per call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import ge

import numpy as np
import pytest

from qwen3_embedding_integrations import CachedEncoder, MemoryStore, Qwen3Encoder
from qwen3_embedding_integrations.cache import RedisStore
from qwen3_embedding_integrations.cache.layer import Breaker
from tests.cache.encoders import HashEncoder, true_vectors, wait_until
from tests.cache.redis_server import RedisServer, needs_redis, redis_server

NUM_THREADS = 16
NUM_COROUTINES = 16


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Yield a running Redis server."""
    with redis_server() as running:
        yield running


class Crowd:
    """Threads and coroutines that encode texts over and over, and check every vector."""

    def __init__(self, encoder: Qwen3Encoder, cached: CachedEncoder) -> None:
        self.cached = cached
        self.stop = threading.Event()
        self.num_calls = [0] * (NUM_THREADS + NUM_COROUTINES)
        self.worst = 0.0
        self._texts = [f"text {i} 密码" for i in range(40)]
        self._true = {
            "document": dict(zip(self._texts, encoder.encode_documents(self._texts), strict=True)),
            "query": dict(zip(self._texts, encoder.encode_queries(self._texts), strict=True)),
        }

    def thread(self, who: int) -> None:
        """Encode until told to stop: documents or queries, one to four at a time."""
        role = "document" if who % 2 else "query"
        encode = self.cached.encode_documents if who % 2 else self.cached.encode_queries
        while not self.stop.is_set():
            some = self._some(who)
            self._check(who, role, some, encode(some))

    async def coroutine(self, who: int) -> None:
        """Do the same on the event loop."""
        role = "document" if who % 2 else "query"
        encode = self.cached.aencode_documents if who % 2 else self.cached.aencode_queries
        while not self.stop.is_set():
            some = self._some(who)
            self._check(who, role, some, await encode(some))

    def wait_for_calls(self, num_more: int) -> None:
        """Return when everybody has made so many more calls."""
        goal = [number + num_more for number in self.num_calls]
        wait_until(lambda: all(map(ge, self.num_calls, goal)))

    def wait_for_hits(self, num_more: int) -> None:
        """Return when so many more texts were found."""
        goal = self.cached.stats().hits + num_more
        wait_until(lambda: self.cached.stats().hits >= goal)

    def _some(self, who: int) -> list[str]:
        turn = self.num_calls[who]
        return [self._texts[(who * 7 + turn * 3 + i) % 40] for i in range(1 + turn % 4)]

    def _check(self, who: int, role: str, some: list[str], rows: np.ndarray) -> None:
        expected = np.stack([self._true[role][text] for text in some])
        self.worst = max(self.worst, float(np.abs(rows - expected).max()))
        self.num_calls[who] += 1


@needs_redis
async def test_redis_dies_and_comes_back_under_load(
    tiny: Qwen3Encoder, server: RedisServer
) -> None:
    """SIGKILL and start, three times, under 16 threads and 16 coroutines: every vector right."""
    store = RedisStore(server.url)
    crowd = Crowd(tiny, CachedEncoder(tiny, store))

    def disturb() -> None:
        try:
            for _ in range(3):
                crowd.wait_for_calls(4)
                server.kill()
                crowd.wait_for_calls(4)
                server.start()
                crowd.wait_for_hits(50)
        finally:
            crowd.stop.set()

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(NUM_THREADS + 1) as pool:
        threads = [loop.run_in_executor(pool, crowd.thread, who) for who in range(NUM_THREADS)]
        coroutines = [crowd.coroutine(NUM_THREADS + who) for who in range(NUM_COROUTINES)]
        await asyncio.gather(*threads, *coroutines, loop.run_in_executor(pool, disturb))
    assert crowd.worst < 2e-5, f"a vector differs by {crowd.worst}"
    stats = crowd.cached.stats().stores[0]
    assert stats.errors >= 3
    assert stats.skipped > 0
    assert stats.damaged == 0
    store.close()


@needs_redis
@pytest.mark.parametrize("fault", ["dead", "frozen"])
def test_a_redis_that_is_down_is_not_asked_every_time(server: RedisServer, fault: str) -> None:
    """Of 200 calls few meet the server that is gone or answers nothing; the rest go past it."""
    store = RedisStore(server.url, timeout_s=0.05)
    cached = CachedEncoder(HashEncoder(), store)
    cached.encode_documents(["a"])
    if fault == "dead":
        server.kill()
    else:
        server.freeze()
    for i in range(200):
        assert (cached.encode_documents([f"text {i}"]) == true_vectors([f"text {i}"])).all()
    stats = cached.stats().stores[0]
    # Reading and writing each try again after pauses of 1, 2, 4 … seconds; a miss reads twice.
    assert 1 <= stats.errors <= 20, stats
    assert stats.errors + stats.skipped == 600
    if fault == "frozen":
        server.thaw()
    store.close()


@needs_redis
def test_a_full_redis_still_answers(server: RedisServer) -> None:
    """A server that refuses writes is a store that cannot be written: reads go on."""
    store = RedisStore(server.url, timeout_s=30)
    cached = CachedEncoder(HashEncoder(), store)
    cached.encode_documents(["a"])
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    for _ in range(5):
        assert (cached.encode_documents(["a", "b"]) == true_vectors(["a", "b"])).all()
    stats = cached.stats()
    assert stats.stores[0].hits == 5
    assert stats.stores[0].errors >= 1
    store.close()


def test_a_breaker_pauses_longer_each_time_up_to_half_a_minute() -> None:
    """After a failure nobody calls; after the pause one does, and success ends it."""
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    pauses = []
    assert breaker.note(is_success=False), "the first failure is news"
    for _ in range(8):
        start = now[0]
        while not breaker.allows():
            now[0] += 0.25
        pauses.append(now[0] - start)
        assert not breaker.allows(), "two try at once"
        assert not breaker.note(is_success=False)
        assert not breaker.note(is_success=False), "a late failure of the same outage"
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    now[0] += 30
    assert breaker.allows()
    assert breaker.note(is_success=True), "the recovery is news"
    assert breaker.allows()
    assert breaker.allows()
    assert not breaker.note(is_success=True)
    breaker.note(is_success=False)
    now[0] += 1
    assert breaker.allows(), "the pause begins anew at a second"


@pytest.mark.parametrize("method", ["get", "put", "both"])
def test_a_store_of_the_users_may_raise_anything(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An upper store that fails: the lower one answers, and one warning says which failed."""

    class Broken:
        name, stored_bytes = "mine", None

        def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
            if method != "put":
                raise KeyError("secret address")
            return {}

        def put(self, entries: Mapping[bytes, bytes]) -> None:
            if method != "get":
                raise OSError("secret address")

        def close(self) -> None: ...

    cached = CachedEncoder(HashEncoder(), Broken(), MemoryStore())
    for _ in range(3):
        assert (cached.encode_documents(["a", "b"]) == true_vectors(["a", "b"])).all()
    stats = cached.stats()
    assert (stats.encoded, stats.hits) == (2, 4)
    assert stats.stores[0].errors == (2 if method == "both" else 1)
    assert len(caplog.records) == stats.stores[0].errors
    assert "cache store mine failed" in caplog.text
    assert "secret" not in caplog.text
