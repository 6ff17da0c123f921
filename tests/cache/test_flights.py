"""Equal texts asked for at the same time: one call encodes, the others wait, none for a failure."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen3_embedding_integrations import CachedEncoder
from qwen3_embedding_integrations.cache.flights import Flights, Way
from qwen3_embedding_integrations.contract import Vectors
from tests.cache.encoders import PATIENCE_S, HashEncoder, true_vectors, wait_until

NUM_CALLERS = 24
Task = asyncio.Task[Vectors]


def num_looked(cached: CachedEncoder) -> int:
    """Return how many texts were looked for in the first store."""
    store = cached.stats().stores[0]
    return store.hits + store.misses


async def ten_callers() -> tuple[HashEncoder, Task, list[Task], Task]:
    """Return an encoder that is held, the call that it is at, and nine that look for its text."""
    encoder = HashEncoder()
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    leader = asyncio.create_task(cached.aencode_documents(["a"]))
    while encoder.num_calls == 0:
        await asyncio.sleep(0.001)
    waiters = [asyncio.create_task(cached.aencode_documents(["a"])) for _ in range(8)]
    thread = asyncio.create_task(asyncio.to_thread(cached.encode_documents, ["a"]))
    while num_looked(cached) < 10:
        await asyncio.sleep(0.001)
    return encoder, leader, waiters, thread


async def test_threads_and_coroutines_wait_for_one() -> None:
    """48 callers of one text, sync and async, and the encoder is asked once."""
    encoder = HashEncoder()
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        threads = [pool.submit(cached.encode_documents, ["a"]) for _ in range(NUM_CALLERS)]
        coroutines = [
            asyncio.create_task(cached.aencode_documents(["a"])) for _ in range(NUM_CALLERS)
        ]
        while num_looked(cached) < 2 * NUM_CALLERS:
            await asyncio.sleep(0.002)
        encoder.gate.set()
        rows = await asyncio.gather(*coroutines)
        rows += [await asyncio.wrap_future(thread) for thread in threads]
    assert all((row == true_vectors(["a"])).all() for row in rows)
    assert encoder.counts == {"a": 1}
    stats = cached.stats()
    assert (stats.texts, stats.encoded) == (2 * NUM_CALLERS, 1)
    assert stats.hits + stats.joined == 2 * NUM_CALLERS - 1


def test_calls_that_overlap_encode_only_what_is_theirs() -> None:
    """Three calls in a ring, each with a text of the next: no text twice, and nobody is stuck."""
    encoder = HashEncoder()
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    calls = [["a", "b"], ["b", "c"], ["c", "a", "d"]]
    with ThreadPoolExecutor(3) as pool:
        futures = []
        for texts in calls:
            futures.append(pool.submit(cached.encode_documents, texts))
            assert encoder.entered.acquire(timeout=PATIENCE_S)
        encoder.gate.set()
        for texts, future in zip(calls, futures, strict=True):
            assert (future.result(PATIENCE_S) == true_vectors(texts)).all()
    assert encoder.counts == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_queries_do_not_wait_for_documents() -> None:
    """Equal texts in another role are others."""
    encoder = HashEncoder()
    cached = CachedEncoder(encoder)
    encoder.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(cached.encode_documents, ["a"]),
            pool.submit(cached.encode_queries, ["a"], instruction="b"),
        ]
        for _ in futures:
            assert encoder.entered.acquire(timeout=PATIENCE_S)
        encoder.gate.set()
        assert (futures[0].result() == true_vectors(["a"])).all()
        assert (futures[1].result() == true_vectors(["a"], "b")).all()


def test_a_failing_call_does_not_poison_those_that_wait() -> None:
    """The call that fails raises its error; each of the others gets the vector."""
    encoder = HashEncoder()
    encoder.failures = [RuntimeError("the device is gone")]
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        futures = [pool.submit(cached.encode_documents, ["a", "b"]) for _ in range(NUM_CALLERS)]
        wait_until(lambda: num_looked(cached) == 2 * NUM_CALLERS)
        encoder.gate.set()
        outcomes = [future.exception(PATIENCE_S) or future.result() for future in futures]
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    assert errors == ["the device is gone"]
    vectors = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert all((one == true_vectors(["a", "b"])).all() for one in vectors)
    assert encoder.counts["a"] <= 3, "those that waited did not wait for each other again"


def test_a_bad_text_of_one_call_harms_no_other() -> None:
    """A call whose own bad text fails it releases the good texts it held."""
    encoder = HashEncoder()
    encoder.bad_texts = {"bad"}
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(cached.encode_documents, ["good", "bad"])
        assert encoder.entered.acquire(timeout=PATIENCE_S)
        waiting = pool.submit(cached.encode_documents, ["other", "good"])
        assert encoder.entered.acquire(timeout=PATIENCE_S)
        encoder.gate.set()
        assert (waiting.result(PATIENCE_S) == true_vectors(["other", "good"])).all()
        with pytest.raises(ValueError, match=r"documents\[1\] is bad"):
            failing.result(PATIENCE_S)


def test_all_of_many_that_fail_get_their_error_soon() -> None:
    """While every call fails, nobody waits for more than two others in turn."""
    encoder = HashEncoder()
    encoder.failures = [RuntimeError(str(i)) for i in range(NUM_CALLERS)]
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        futures = [pool.submit(cached.encode_documents, ["a"]) for _ in range(NUM_CALLERS)]
        wait_until(lambda: num_looked(cached) == NUM_CALLERS)
        encoder.gate.set()
        errors = sorted(int(str(future.exception(PATIENCE_S))) for future in futures)
    assert errors == list(range(NUM_CALLERS))
    assert (cached.encode_documents(["a"]) == true_vectors(["a"])).all()


async def test_a_caller_that_leaves_does_not_poison_those_that_wait() -> None:
    """The coroutine that encodes is cancelled, and one that waits: the others get the vector."""
    encoder, leader, waiters, thread = await ten_callers()
    waiters[0].cancel()
    leader.cancel()
    outcomes = await asyncio.gather(leader, waiters[0], return_exceptions=True)
    assert [type(one) for one in outcomes] == [asyncio.CancelledError] * 2
    encoder.gate.set()
    rows = await asyncio.wait_for(asyncio.gather(*waiters[1:], thread), PATIENCE_S)
    assert all((row == true_vectors(["a"])).all() for row in rows)
    assert encoder.counts["a"] == 2


async def test_a_waiter_that_leaves_takes_nothing_from_the_others() -> None:
    """One of those that wait is cancelled: the others go on waiting, and nothing is done twice."""
    encoder, leader, waiters, thread = await ten_callers()
    await asyncio.sleep(0.05)  # from having looked to waiting
    waiters[0].cancel()
    await asyncio.gather(waiters[0], return_exceptions=True)
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in [leader, *waiters[1:], thread])
    encoder.gate.set()
    rows = await asyncio.wait_for(asyncio.gather(leader, *waiters[1:], thread), PATIENCE_S)
    assert all((row == true_vectors(["a"])).all() for row in rows)
    assert encoder.counts["a"] == 1


async def test_a_thread_never_waits_for_the_loop_it_runs() -> None:
    """However long one waits for a loop elsewhere, on that loop's own thread it is not at all."""
    flights, way = Flights(), Way(len, loop_patience_s=PATIENCE_S)
    flight, _ = flights.claim([b"a"])
    late = threading.Timer(2, flights.end, (flight, {b"a": true_vectors(["a"])[0]}))
    late.start()
    (other,) = flights.claim([b"a"])[1]
    assert way.finish(way.wait(other)) == {}, "it waited until the flight landed"
    late.cancel()


async def test_a_sync_call_on_the_loop_does_not_wait_for_that_loop() -> None:
    """A host's sync method, called in a coroutine, encodes for itself: waiting would never end."""
    encoder = HashEncoder()
    encoder.gate.clear()
    cached = CachedEncoder(encoder)
    task = asyncio.create_task(cached.aencode_documents(["a"]))
    while encoder.num_calls == 0:
        await asyncio.sleep(0.001)
    threading.Timer(0.1, encoder.gate.set).start()
    assert (cached.encode_documents(["a"]) == true_vectors(["a"])).all()
    assert (await task == true_vectors(["a"])).all()
    assert encoder.counts["a"] == 2


async def test_a_loop_that_is_blocked_is_not_waited_for_long() -> None:
    """A thread that the loop itself waits for is let go, though the loop's flight has not ended."""
    flights = Flights()
    flight, _ = flights.claim([b"a"])
    outcomes: list[object] = []

    def sync() -> None:
        way = Way(len, loop_patience_s=0.05)
        outcomes.append(way.finish(way.wait(flights.claim([b"a"])[1][0])))

    def nested_loop() -> None:
        way = Way(len, is_async=True, loop_patience_s=0.05)
        outcomes.append(asyncio.run(way.wait(flights.claim([b"a"])[1][0])))

    for target in (sync, nested_loop):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(PATIENCE_S)  # blocks the loop
    assert outcomes == [{}, {}]
    flights.end(flight, {})
    assert flights.claim([b"a"])[1] == []


async def test_the_loop_is_free_while_stores_are_asked() -> None:
    """A store that blocks does not block the event loop."""
    gate = threading.Event()
    was_opened: list[bool] = []

    class Slow:
        name, stored_bytes = "slow", None

        def get(self, keys: object) -> dict[bytes, bytes]:
            was_opened.append(gate.wait(PATIENCE_S))  # not an assertion: a store may raise
            return {}

        put = close = lambda *_: None

    cached = CachedEncoder(HashEncoder(), Slow())
    task = asyncio.create_task(cached.aencode_documents(["a"]))
    for _ in range(10):
        await asyncio.sleep(0.001)  # would not come back
    gate.set()
    assert (await task == true_vectors(["a"])).all()
    assert all(was_opened), "the loop stood still while the store was asked"
