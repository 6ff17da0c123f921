"""The stores: what they keep, how much, and what becomes of damage; Redis on a real server."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations import ConfigError
from qwen3_embedding_integrations.cache import (
    CachedEncoder,
    DiskStore,
    MemoryStore,
    RedisStore,
    Store,
)
from qwen3_embedding_integrations.cache.entry import write_entry
from qwen3_embedding_integrations.cache.stores import ENTRY_OVERHEAD_BYTES
from tests.cache.encoders import HashEncoder, true_vector, true_vectors
from tests.cache.redis_server import RedisServer, needs_redis, redis_server

KINDS = ["memory", "disk", pytest.param("redis", marks=needs_redis)]
TEXTS = [f"text {i}" for i in range(20)]


def key_of(i: int) -> bytes:
    return i.to_bytes(32, "big")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Yield a running Redis server."""
    with redis_server() as running:
        yield running


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Yield an empty store of each kind."""
    with ExitStack() as stack:
        if request.param == "memory":
            made: Store = MemoryStore()
        elif request.param == "disk":
            made = DiskStore(tmp_path / "deep" / "vectors.cache")
        else:
            made = RedisStore(stack.enter_context(redis_server()).url, timeout_s=30)
        yield made
        made.close()


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_store_gives_back_what_it_was_given(store: Store) -> None:
    """Any bytes, under their keys alone, the last ones written; more than one command's worth."""
    entries = {key_of(i): bytes([i % 256]) * (i % 40) for i in range(2500)}
    store.put(entries)
    assert store.get([*entries, key_of(9999)]) == entries
    store.put({key_of(1): b"new"})
    assert store.get([key_of(1), key_of(2)]) == {key_of(1): b"new", key_of(2): entries[key_of(2)]}
    assert store.get([]) == {}


@pytest.mark.parametrize("store", KINDS, indirect=True)
@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "nan", "length", "swapped"])
def test_a_damaged_entry_is_a_miss_and_is_made_anew(store: Store, damage: str) -> None:
    """Whatever is wrong with an entry: the right vector, no error, one count, a whole entry."""
    encoder = HashEncoder()
    kept: dict[bytes, bytes] = {}

    class Watched:
        name, stored_bytes = "watched", None
        get, close = store.get, store.close

        def put(self, entries: dict[bytes, bytes]) -> None:
            kept.update(entries)
            store.put(entries)

    cached = CachedEncoder(encoder, Watched())
    cached.encode_documents(["a", "b"])
    (key, entry), (other_key, other_entry) = kept.items()
    huge = (true_vector("a") * 3).astype(np.float32)
    damaged = {
        "cut": entry[:-1],
        "bit": bytes([*entry[:-1], entry[-1] ^ 1]),
        "empty": b"",
        "nan": write_entry(key, np.full(256, np.nan, np.float32), "float32"),
        "length": write_entry(key, huge, "float32"),
        "swapped": other_entry,
    }[damage]
    store.put({key: damaged})
    assert (cached.encode_documents(["b", "a"]) == true_vectors(["b", "a"])).all()
    stats = cached.stats()
    assert (stats.stores[0].damaged, stats.stores[0].errors, stats.encoded) == (1, 0, 3)
    assert store.get([key, other_key]) == {key: entry, other_key: other_entry}
    assert (cached.encode_documents(["a"]) == true_vectors(["a"])).all()
    assert cached.stats().encoded == 3, "the entry was not made anew"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 400)), max_size=60))
def test_memory_forgets_what_was_not_used_for_longest(steps: list[tuple[bool, int, int]]) -> None:
    """Against a list in order of use: the same entries, never more bytes than allowed."""
    store, room = MemoryStore(2000), 2000
    naive: list[tuple[bytes, bytes]] = []
    for is_put, number, num_bytes in steps:
        key = key_of(number)
        if is_put:
            entry = bytes(num_bytes)
            store.put({key: entry})
            naive = [pair for pair in naive if pair[0] != key] + [(key, entry)]
            while sum(len(e) + ENTRY_OVERHEAD_BYTES for _, e in naive) > room:
                naive.pop(0)
        else:
            found = [pair for pair in naive if pair[0] == key]
            assert store.get([key]) == dict(found)
            naive = [pair for pair in naive if pair[0] != key] + found
        assert store.stored_bytes == sum(len(e) + ENTRY_OVERHEAD_BYTES for _, e in naive) <= room
    for number in range(9):
        assert bool(store.get([key_of(number)])) == (key_of(number) in dict(naive))


def test_memory_takes_no_more_than_it_says() -> None:
    """What Python allocates for a full store is within `max_bytes`, small entries and large."""
    for num_bytes in (100, 4116):
        tracemalloc.start()
        try:
            store = MemoryStore(2**20)
            for i in range(2**21 // num_bytes):
                store.put({key_of(i): bytes(num_bytes)})
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert taken <= 2**20, f"{taken} bytes for entries of {num_bytes}"
        assert store.stored_bytes > 0.9 * 2**20


def test_an_entry_larger_than_memory_is_not_kept() -> None:
    """It does not push everything else out."""
    store = MemoryStore(1000)
    store.put({key_of(1): b"a"})
    store.put({key_of(2): bytes(1001)})
    assert store.get([key_of(1), key_of(2)]) == {key_of(1): b"a"}


def test_the_disk_store_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    """Written five times over: the file stays near its bound, what was written last is there."""
    bound = 4 * 2**20
    store = DiskStore(tmp_path / "cache", bound)
    for start in range(0, 5000, 250):
        store.put({key_of(i): i.to_bytes(4, "big") * 1024 for i in range(start, start + 250)})
        assert store.stored_bytes <= bound
    kept = store.get([key_of(i) for i in range(5000)])
    numbers = sorted(int.from_bytes(key, "big") for key in kept)
    assert numbers == list(range(numbers[0], 5000)), "what went was not what was oldest"
    assert len(kept) * 4096 > bound / 2, f"{len(kept)} entries in {bound} bytes"
    store.put({key_of(numbers[0]): b"again"})
    store.put({key_of(i): bytes(4096) for i in range(6000, 6200)})
    assert store.get([key_of(numbers[0])]), "what was written again is not old"
    store.close()
    assert (tmp_path / "cache").stat().st_size <= bound + 8 * 2**20


@pytest.mark.parametrize("where", ["from the start", "in the middle"])
def test_a_damaged_file_is_a_miss(tmp_path: Path, where: str) -> None:
    """A file that is no database, or whose pages are overwritten: right vectors, and counted."""
    path = tmp_path / "cache"
    if where == "from the start":
        path.write_bytes(b"not a database" * 1000)
    else:
        CachedEncoder(HashEncoder(), DiskStore(path)).encode_documents(TEXTS)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        content = bytearray(path.read_bytes())
        content[5000:] = b"\xaa" * (len(content) - 5000)
        path.write_bytes(bytes(content))
    with CachedEncoder(HashEncoder(), DiskStore(path)) as cached:
        for _ in range(3):
            assert (cached.encode_documents(TEXTS) == true_vectors(TEXTS)).all()
        stats = cached.stats()
    assert stats.encoded == 3 * len(TEXTS)
    assert stats.stores[0].errors > 0


@needs_redis
def test_redis_forgets_after_the_ttl(server: RedisServer) -> None:
    """Every entry has the time to live it was given, and is gone after it."""
    store = RedisStore(server.url, ttl_s=1000, timeout_s=30)
    store.put({key_of(1): b"long"})
    brief = RedisStore(server.url, ttl_s=1, timeout_s=30)
    brief.put({key_of(2): b"brief"})
    with server.client() as client:
        names = {bytes(name): client.ttl(name) for name in client.keys("qwen3-embedding:*")}
    assert 900 < names[b"qwen3-embedding:" + key_of(1)] <= 1000
    assert 0 <= names.get(b"qwen3-embedding:" + key_of(2), 0) <= 1
    deadline = time.monotonic() + 60
    while brief.get([key_of(2)]):
        assert time.monotonic() < deadline, "the entry outlived its time"
        time.sleep(0.05)
    assert store.get([key_of(1)]) == {key_of(1): b"long"}
    store.close()
    brief.close()


@needs_redis
def test_prefixes_keep_apart(server: RedisServer) -> None:
    """Two prefixes on one server are two caches."""
    one, other = RedisStore(server.url, prefix="a:"), RedisStore(server.url, prefix="b:")
    one.put({key_of(1): b"a"})
    assert other.get([key_of(1)]) == {}
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryStore(0), "max_bytes is 0"),
        (lambda: DiskStore("x", 1000), "max_bytes is 1000"),
        (lambda: RedisStore("http://localhost"), "no Redis URL"),
        (lambda: RedisStore(ttl_s=0), "ttl_s is 0"),
        (lambda: RedisStore(timeout_s=0), "timeout_s is 0"),
    ],
)
def test_a_wrong_option_is_refused(make: object, message: str) -> None:
    """An option with a value it cannot have is a ConfigError that names it."""
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_pickled_store_is_the_same_place(tmp_path: Path) -> None:
    """Memory comes back empty, a file and a server as themselves; no password is shown."""
    disk = DiskStore(tmp_path / "cache")
    disk.put({key_of(1): b"a"})
    assert pickle.loads(pickle.dumps(disk)).get([key_of(1)]) == {key_of(1): b"a"}
    assert pickle.loads(pickle.dumps(MemoryStore(5000))).max_bytes == 5000
    remote = RedisStore("redis://me:secret@localhost:1/0", ttl_s=7)
    assert "ttl_s=7" in repr(pickle.loads(pickle.dumps(remote)))
    assert "secret" not in repr(remote) + remote.name


def test_without_redis_the_extra_is_named() -> None:
    """The store of a package that is not installed says how to install it; the others work."""
    code = """
import sys
sys.modules["redis"] = None  # as if it were not installed
from qwen3_embedding_integrations import CachedEncoder, MemoryStore, RedisStore
from tests.cache.encoders import HashEncoder
CachedEncoder(HashEncoder(), MemoryStore()).encode_documents(["a"])
RedisStore()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert "pip install 'qwen3-embedding-integrations[redis]'" in done.stderr
