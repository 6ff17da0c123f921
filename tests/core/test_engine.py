"""The engine: everyone's own rows, whatever fails, whoever waits, however little room there is.

The device is the one double of this suite: a real callable with limited room that gives different
texts different vectors, so that swapped rows cannot hide.
"""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.calls import MAX_OVERTAKING_FORWARDS
from qwen3_embedding_integrations.core.engine import Engine, Runner
from qwen3_embedding_integrations.core.packing import Int32Array, PackedBatch
from qwen3_embedding_integrations.errors import (
    DeviceOutOfMemoryError,
    EngineClosedError,
    EngineError,
)

WIDTH = 16
POISON, CRASH = 666_666, 777_777  # token ids that make a forward fail, or end the thread
TIMEOUT_S = 30  # of waiting for what must come; nothing here measures time


def vector_of(ids, prefix_ids=()) -> np.ndarray:
    """Return the unit vector of a text: another for any other text or prefix."""
    seed = zlib.crc32(np.array([*prefix_ids, -1, *ids], np.int64).tobytes())
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Device:
    """Runs a batch when it has room for it and `gate` is open; remembers what it ran."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)  # released when a forward begins
        self.batches: list[PackedBatch] = []

    def __call__(self, batch: PackedBatch) -> Callable[[], np.ndarray]:
        self.batches.append(batch)
        self.entered.release()
        if not self.gate.wait(TIMEOUT_S):
            raise TimeoutError("the test forgot to open the gate")
        return self.run(batch)

    def run(self, batch: PackedBatch) -> Callable[[], np.ndarray]:
        if batch.num_keys > self.room:
            raise torch.OutOfMemoryError(f"no room for {batch.num_keys}")
        if (batch.input_ids == CRASH).any():
            raise SystemExit("the thread is told to end")
        if (batch.input_ids == POISON).any():
            raise ValueError("poisoned")
        texts = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
        vectors = np.stack([vector_of(ids, batch.prefix_ids) for ids in texts])
        return lambda: vectors

    def wait_for_forward(self) -> None:
        """Return when another forward has begun."""
        assert self.entered.acquire(timeout=TIMEOUT_S), "no forward began"

    @property
    def num_texts(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class AsyncDevice(Device):
    """Launches at once and computes while it is waited for, as a GPU does."""

    def __init__(self, room: int = 1_000_000) -> None:
        super().__init__(room)
        self.lock = threading.Lock()
        self.num_in_flight = self.most_in_flight = 0

    def __call__(self, batch: PackedBatch) -> Callable[[], np.ndarray]:
        with self.lock:
            self.num_in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        self.batches.append(batch)
        self.entered.release()

        def finish() -> np.ndarray:
            self.gate.wait(TIMEOUT_S)
            with self.lock:
                self.num_in_flight -= 1
            return self.run(batch)()

        return finish


def engine_of(device: Device, max_batch_tokens: int, max_in_flight: int = 1) -> Engine:
    return Engine([Runner(device, "cpu", max_batch_tokens, max_in_flight)], width=WIDTH)


@pytest.fixture
def engines():
    """Make engines that are closed when the test ends, their gates opened."""
    made: list[tuple[Device, Engine]] = []

    def make(device: Device, *, max_batch_tokens: int = 100, max_in_flight: int = 1) -> Engine:
        engine = engine_of(device, max_batch_tokens, max_in_flight)
        made.append((device, engine))
        return engine

    yield make
    for device, engine in made:
        device.gate.set()
        engine.close()


def random_texts(rng: random.Random, most_texts: int, most_tokens: int) -> list[Int32Array]:
    return [
        np.array([rng.randrange(1000) for _ in range(rng.randint(1, most_tokens))], np.int32)
        for _ in range(rng.randint(0, most_texts))
    ]


def text(*ids: int) -> Int32Array:
    return np.array(ids, np.int32)


def texts_of(num_texts: int, num_tokens: int, first_id: int = 0) -> list[Int32Array]:
    return [np.full(num_tokens, first_id + i, np.int32) for i in range(num_texts)]


def assert_own_rows(vectors: np.ndarray, texts, prefix_ids=()) -> None:
    expected = np.array([vector_of(ids, prefix_ids) for ids in texts], np.float32)
    expected = expected.reshape(-1, WIDTH)
    assert vectors.dtype == np.float32
    assert vectors.shape == expected.shape
    wrong = np.flatnonzero((vectors != expected).any(axis=1)).tolist()
    assert not wrong, f"{len(wrong)} of {len(texts)} rows are another text's, first {wrong[0]}"


def assert_each_its_own(engine, calls) -> None:
    """Assert that calls of texts so long get their own rows, and close the engine."""
    try:
        batches = [
            [np.full(n, 100 * i + j, np.int32) for j, n in enumerate(lengths)]
            for i, lengths in enumerate(calls)
        ]
        submitted = [engine.submit(texts) for texts in batches]
        for call, texts in zip(submitted, batches, strict=True):
            assert_answers(call, texts)
    finally:
        engine.close()


def assert_answers(call, texts, prefix_ids=()) -> None:
    """Assert that the call is answered, with its own rows."""
    assert_own_rows(call.future.result(TIMEOUT_S), texts, prefix_ids)


def busy(device: Device, engine: Engine, *ids: int):
    """Hold the device with a call of one text; what is submitted next piles up behind it."""
    device.gate.clear()
    call = engine.submit([text(*(ids or (0,)))])
    device.wait_for_forward()
    return call


def in_threads(work: Callable[[int], None], num_threads: int) -> None:
    """Run work(0), work(1), … each in a thread; raise the first failure."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    if failures:
        raise failures[0]


# Own rows


@pytest.mark.parametrize("max_batch_tokens", [1000, 100, 30])
def test_forty_threads_get_their_own_rows(engines, max_batch_tokens):
    """Forty callers with random texts on a device with room for 100 tokens: each its own rows."""
    engine = engines(Device(room=100), max_batch_tokens=max_batch_tokens)

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(4):
            texts = random_texts(rng, 30, 40)
            prefix_ids = rng.choice([(), (1, 2, 3), (4,) * 10])
            assert_answers(engine.submit(texts, prefix_ids), texts, prefix_ids)

    in_threads(caller, 40)
    assert engine.max_batch_tokens <= max(100, max_batch_tokens)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=12), min_size=1, max_size=8),
    st.integers(1, 120),
    st.integers(30, 120),
    st.integers(1, 2),
)
def test_any_calls_at_any_budget_get_their_own_rows(calls, budget, room, max_in_flight):
    """Whatever the lengths, the budget, the room and the depth: every call gets its own rows."""
    device = AsyncDevice(room)
    engine = engine_of(device, budget, max_in_flight)
    assert_each_its_own(engine, calls)


def test_a_narrower_width_is_cut_and_made_unit_again(engines):
    """A call for fewer dimensions gets the first ones, at unit length, beside one for all."""
    device = Device()
    engine = engines(device)
    held = busy(device, engine)
    texts = texts_of(5, 4)
    narrow, wide = engine.submit(texts, width=4), engine.submit(texts)
    device.gate.set()
    assert_answers(held, [text(0)])
    assert_answers(wide, texts)
    expected = wide.future.result()[:, :4]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    difference = np.abs(narrow.future.result(TIMEOUT_S) - expected).max()
    assert difference < 1e-7, f"max difference {difference:.1e}"
    assert len(device.batches) == 2, "the two widths did not share a forward"


def test_an_empty_call_is_answered_at_once(engines):
    """No texts give (0, width), without a forward."""
    device = Device()
    call = engines(device).submit([], width=7)
    assert call.future.result(timeout=0).shape == (0, 7)
    assert device.batches == []


# Merging


def test_waiting_calls_are_merged(engines):
    """Fifty calls that wait while the device works run in one forward, and get their own rows."""
    device = Device()
    engine = engines(device, max_batch_tokens=1000)
    held = busy(device, engine)
    calls = [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(50))]
    device.gate.set()
    assert_answers(held, [text(0)])
    for call, texts in calls:
        assert_answers(call, texts)
    assert device.num_texts == [1, 100]
    assert engine.num_forwards == 2


def test_merging_stops_at_the_budget(engines):
    """Merged forwards hold as many calls as fit the token budget, and no more."""
    device = Device()
    engine = engines(device, max_batch_tokens=100)
    held = busy(device, engine)
    calls = [(engine.submit(texts), texts) for texts in (texts_of(1, 30, i) for i in range(9))]
    device.gate.set()
    assert_answers(held, [text(0)])
    for call, texts in calls:
        assert_answers(call, texts)
    assert device.num_texts == [1, 3, 3, 3]


def test_other_prefixes_never_share_a_forward(engines):
    """Calls with another instruction run apart from each other; each is read after its own."""
    device = Device()
    engine = engines(device, max_batch_tokens=1000)
    prefixes = [(), (1,), (2,), (1, 2)]
    held = busy(device, engine)
    calls = []
    for i in range(40):
        texts, prefix_ids = texts_of(2, 3, i), prefixes[i % len(prefixes)]
        calls.append((engine.submit(texts, prefix_ids), texts, prefix_ids))
    device.gate.set()
    assert_answers(held, [text(0)])
    for call in calls:
        assert_answers(*call)
    assert sorted(device.num_texts[1:]) == [20, 20, 20, 20]
    assert {batch.prefix_ids for batch in device.batches[1:]} == set(prefixes)


def test_groups_are_one_call(engines):
    """Groups with prefixes of their own are answered by one future, and yield to a single call."""
    device = Device()
    engine = engines(device, max_batch_tokens=60)
    groups = [(texts_of(8, 5, 100 * len(prefix)), prefix) for prefix in ((), (1,), (1, 2))]
    held = busy(device, engine)
    call = engine.submit_groups(groups)
    single = engine.submit(texts_of(1, 5, 7))
    device.gate.set()
    assert_answers(held, [text(0)])
    assert_answers(single, texts_of(1, 5, 7))
    rows = call.future.result(TIMEOUT_S)
    for i, (texts, prefix_ids) in enumerate(groups):
        assert_own_rows(rows[8 * i : 8 * i + 8], texts, prefix_ids)
    assert engine.submit_groups([([], (1,))]).future.result(TIMEOUT_S).shape == (0, WIDTH)
    first_texts = [int(batch.input_ids[0]) for batch in device.batches[1:]]
    assert first_texts.index(7) <= 1, "a single call waited for all groups"


def test_the_prefix_counts_for_every_text(engines):
    """A budget counts the keys attention reads: a long prefix lets fewer texts in."""
    device = Device()
    engine = engines(device, max_batch_tokens=100)
    prefix_ids, texts = tuple(range(20)), texts_of(10, 5)
    assert_answers(engine.submit(texts, prefix_ids), texts, prefix_ids)
    assert device.num_texts == [4, 4, 2]


# Order


def test_small_calls_overtake_a_bulk_call(engines):
    """A search that arrives during an import runs before the import's remaining shares."""
    device = Device()
    engine = engines(device, max_batch_tokens=100)
    held = busy(device, engine)
    bulk_texts, texts = texts_of(20, 50), texts_of(1, 60, 500)
    bulk, small = engine.submit(bulk_texts), engine.submit(texts)
    device.gate.set()
    assert_answers(small, texts)
    assert_answers(bulk, bulk_texts)
    assert_answers(held, [text(0)])
    assert device.batches[1].input_ids[0] == 500, "the bulk call ran first"


def test_a_bulk_call_is_not_starved(engines):
    """However many small calls wait, every few forwards a bulk share runs."""
    device = Device()
    engine = engines(device, max_batch_tokens=100)
    held = busy(device, engine)
    bulk_texts = texts_of(8, 50)  # four forwards
    bulk = engine.submit(bulk_texts)
    small = [
        (engine.submit(texts), texts) for texts in (texts_of(1, 60, 500 + i) for i in range(60))
    ]
    device.gate.set()
    assert_answers(bulk, bulk_texts)
    for call, texts in small:
        assert_answers(call, texts)
    assert_answers(held, [text(0)])
    is_bulk = [batch.input_ids[0] < 500 for batch in device.batches[1:]]
    gaps = [len(list(run)) for kind, run in itertools.groupby(is_bulk) if not kind]
    assert sum(is_bulk) == 4
    assert not is_bulk[-1], "the bulk call waited for every small one"
    assert max(gaps[:4]) <= MAX_OVERTAKING_FORWARDS, f"small calls between bulk shares: {gaps}"


def test_bulk_calls_and_prefixes_all_progress(engines):
    """Several bulk calls with different instructions are all answered, none before it is due."""
    device = Device()
    engine = engines(device, max_batch_tokens=40)
    held = busy(device, engine)
    calls = [
        (engine.submit(texts, prefix_ids), texts, prefix_ids)
        for prefix_ids in ((1,), (2,), (3,))
        for texts in [texts_of(30, 10, 100 * prefix_ids[0])]
    ]
    device.gate.set()
    for call in calls:
        assert_answers(*call)
    assert_answers(held, [text(0)])


@pytest.fixture
def pair():
    """An engine whose device has a thread for calls of 10 tokens beside forwards of 50."""
    device, beside = Device(), Device()
    runners = [Runner(device, "cpu", 100), Runner(beside, "cpu", 10, beside_tokens=50)]
    engine = Engine(runners, width=WIDTH)
    yield device, beside, engine
    device.gate.set()
    beside.gate.set()
    engine.close()


def held_at(device: Device, engine: Engine, num_tokens: int):
    """Hold the device at a forward of so many tokens; return its call and texts."""
    texts = texts_of(1, num_tokens, first_id=7000)
    device.gate.clear()
    call = engine.submit(texts)
    device.wait_for_forward()
    return call, texts


def test_a_short_call_runs_beside_a_long_forward(pair):
    """While a long forward runs, short calls are answered; longer ones wait for the device."""
    device, beside, engine = pair
    held, held_texts = held_at(device, engine, 50)
    long, bulk, short = texts_of(2, 6, 10), texts_of(30, 10, 100), texts_of(2, 4, 20)
    waiting = [engine.submit(long), engine.submit(bulk)]
    assert_answers(engine.submit(short, (1,)), short, (1,))
    assert not any(call.future.done() for call in (held, *waiting))
    assert [batch.num_keys for batch in beside.batches] == [10]
    device.gate.set()
    for call, texts in zip((held, *waiting), (held_texts, long, bulk), strict=True):
        assert_answers(call, texts)
    assert len(beside.batches) == 1
    assert engine.max_batch_tokens == 100
    assert engine.forwards_by_device == {"cpu": len(device.batches) + 1}


def test_short_calls_wait_for_a_short_forward(pair):
    """A forward that is over soon has no other beside it; an idle device takes all by itself."""
    device, beside, engine = pair
    assert_answers(engine.submit(texts_of(2, 5)), texts_of(2, 5))
    held, held_texts = held_at(device, engine, 49)
    calls = [engine.submit(texts_of(1, 5, i)) for i in range(5)]
    device.gate.set()
    for i, call in enumerate(calls):
        assert_answers(call, texts_of(1, 5, i))
    assert_answers(held, held_texts)
    assert beside.batches == []


def test_a_short_call_that_waits_runs_when_a_long_forward_begins(pair):
    """What a long forward leaves in the queue does not wait for its end."""
    device, beside, engine = pair
    held, _ = held_at(device, engine, 40)
    large, short = texts_of(1, 98, 1), texts_of(1, 5, 2)
    first, second = engine.submit(large), engine.submit(short)
    device.gate.set()
    for call, texts in ((first, large), (second, short)):
        assert_answers(call, texts)
    assert held.future.done()
    assert [batch.num_keys for batch in device.batches + beside.batches] == [40, 98, 5]


def test_a_poisoned_call_beside_a_long_forward_harms_no_other(pair):
    """Of calls merged beside a long forward, the one that fails is the only one that fails."""
    device, beside, engine = pair
    held, held_texts = held_at(device, engine, 60)
    beside.gate.clear()
    calls = [engine.submit([text(i)]) for i in range(3)]
    poisoned = engine.submit([text(POISON)])
    beside.gate.set()
    for i, call in enumerate(calls):
        assert_answers(call, [text(i)])
    with pytest.raises(EngineError, match="poisoned"):
        poisoned.future.result(TIMEOUT_S)
    device.gate.set()
    assert_answers(held, held_texts)


def test_threads_beside_a_long_forward_get_their_own_rows():
    """Forty callers with short and long calls on both threads: each its own rows."""
    runners = [Runner(Device(), "cpu", 100), Runner(Device(), "cpu", 20, beside_tokens=30)]
    engine = Engine(runners, width=WIDTH)

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            texts = random_texts(rng, *rng.choice([(2, 8), (30, 40)]))
            assert_answers(engine.submit(texts), texts)

    try:
        in_threads(caller, 40)
    finally:
        engine.close()


# Failure


def test_out_of_memory_splits_and_is_remembered(engines):
    """A forward too large is run in parts; later calls are planned for the smaller room."""
    device = Device(room=100)
    engine = engines(device, max_batch_tokens=1000)
    texts = texts_of(20, 20)
    assert_answers(engine.submit(texts), texts)
    assert engine.num_retries > 0
    assert engine.max_batch_tokens <= 100
    retries, forwards = engine.num_retries, len(device.batches)
    assert_answers(engine.submit(texts), texts)
    assert engine.num_retries == retries, "the smaller room was forgotten"
    assert all(batch.num_keys <= 100 for batch in device.batches[forwards:])


def test_out_of_memory_of_merged_calls_harms_nobody(engines):
    """Calls that fit alone and not together are all answered."""
    device = Device(room=100)
    engine = engines(device, max_batch_tokens=1000)
    held = busy(device, engine)
    calls = [
        (engine.submit(texts), texts) for texts in (texts_of(3, 15, 10 * i) for i in range(20))
    ]
    device.gate.set()
    assert_answers(held, [text(0)])
    for call, texts in calls:
        assert_answers(call, texts)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_text_too_long_for_the_device_fails_alone(engines, max_in_flight):
    """One text beyond the room is a DeviceOutOfMemoryError for its caller and for no one else."""
    device = Device(room=100)
    engine = engines(device, max_batch_tokens=1000, max_in_flight=max_in_flight)
    held = busy(device, engine)
    before = [
        (engine.submit(texts), texts) for texts in (texts_of(2, 20, 10 * i) for i in range(5))
    ]
    too_long = engine.submit([np.full(101, 999, np.int32), text(1, 2)])
    after = [
        (engine.submit(texts), texts) for texts in (texts_of(2, 20, 90 + 9 * i) for i in range(5))
    ]
    device.gate.set()
    assert_answers(held, [text(0)])
    error = too_long.future.exception(TIMEOUT_S)
    assert isinstance(error, DeviceOutOfMemoryError)
    assert (error.num_tokens, error.device) == (101, "cpu")
    assert "101 tokens" in str(error)
    assert "max_length" in str(error)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    for call, texts in before + after:
        assert_answers(call, texts)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_poisoned_text_fails_only_its_own_call(engines, max_in_flight):
    """Of calls merged into one forward, the one whose text fails gets the error, the rest rows."""
    device = Device()
    engine = engines(device, max_batch_tokens=1000, max_in_flight=max_in_flight)
    held = busy(device, engine)
    calls = [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(10))]
    poisoned = engine.submit([text(1), text(POISON)])
    calls += [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(9))]
    device.gate.set()
    assert_answers(held, [text(0)])
    error = poisoned.future.exception(TIMEOUT_S)
    assert isinstance(error, EngineError)
    assert isinstance(error.__cause__, ValueError)
    assert str(error) == "the forward failed: poisoned"
    for call, texts in calls:
        assert_answers(call, texts)
    assert device.num_texts[1] == 40, "they were not merged, so this proves nothing"


def test_a_failed_bulk_call_leaves_nothing_behind(engines):
    """After one share of a bulk call failed, its other shares do not run."""
    device = Device()
    engine = engines(device, max_batch_tokens=10)
    texts = [np.array([POISON] * 10, np.int32), *texts_of(20, 9)]
    error = engine.submit(texts).future.exception(TIMEOUT_S)
    assert isinstance(error, EngineError)
    assert isinstance(error.__cause__, ValueError)
    healthy = texts_of(1, 3)
    assert_answers(engine.submit(healthy), healthy)
    assert len(device.batches) <= 4, f"{len(device.batches)} forwards after the failure"


class Overflowing(Device):
    """Fails while the result is waited for, as a CUDA kernel does."""

    def run(self, batch):
        def finish():
            raise ValueError("poisoned")

        return finish if (batch.input_ids == POISON).any() else super().run(batch)


def test_a_failure_while_waiting_harms_only_its_own_call(engines):
    """A forward that fails after its launch is recovered like one that fails at once."""
    device = Overflowing()
    engine = engines(device, max_batch_tokens=1000, max_in_flight=2)
    held = busy(device, engine)
    texts = texts_of(3, 4)
    healthy, poisoned = engine.submit(texts), engine.submit([text(POISON)])
    device.gate.set()
    assert_answers(held, [text(0)])
    assert_answers(healthy, texts)
    error = poisoned.future.exception(TIMEOUT_S)
    assert isinstance(error, EngineError)
    assert isinstance(error.__cause__, ValueError)


def assert_all_answered(calls) -> None:
    _, waiting = wait([call.future for call in calls], 10)
    assert not waiting, f"{len(waiting)} of {len(calls)} callers wait for ever"


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_crash_of_the_thread_answers_everyone(engines, max_in_flight):
    """When the engine's thread ends by no ordinary error, no caller waits for ever.

    Neither those of the forward that crashed nor those that wait behind it; later calls are
    refused.
    """
    device = Device()
    engine = engines(device, max_batch_tokens=20, max_in_flight=max_in_flight)
    held = busy(device, engine, CRASH)
    calls = [engine.submit(texts_of(3, 10, 10 * i)) for i in range(10)]
    device.gate.set()
    assert_all_answered([held, *calls])
    for call in [held, *calls]:
        assert isinstance(call.future.exception(), EngineClosedError)
    with pytest.raises(EngineClosedError, match="thread ended"):
        engine.submit([text(1)])
    assert engine.is_closed


class CrashingLate(Device):
    """Ends the thread while a result is waited for."""

    def run(self, batch):
        def finish():
            raise KeyboardInterrupt

        return finish if (batch.input_ids == CRASH).any() else super().run(batch)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_crash_while_waiting_answers_everyone(engines, max_in_flight):
    """The same when the crash comes while a launched forward is waited for."""
    device = CrashingLate()
    engine = engines(device, max_batch_tokens=20, max_in_flight=max_in_flight)
    held = busy(device, engine, CRASH)
    calls = [engine.submit(texts_of(3, 10, 10 * i)) for i in range(10)]
    device.gate.set()
    assert_all_answered([held, *calls])
    assert isinstance(held.future.exception(), EngineClosedError)


class Miscounting(Device):
    """Returns one vector too few for a batch that holds CRASH."""

    def run(self, batch):
        texts = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
        vectors = np.stack([vector_of(ids) for ids in texts])
        return lambda: vectors[:-1] if (batch.input_ids == CRASH).any() else vectors


def test_a_wrong_number_of_vectors_answers_everyone(engines):
    """A forward that returns too few rows fails its callers; none waits for ever."""
    device = Miscounting()
    engine = engines(device, max_batch_tokens=100)
    held = busy(device, engine)
    calls = [engine.submit(texts_of(3, 2, 10 * i)) for i in range(3)]
    calls.append(engine.submit([text(CRASH), text(1), text(2)]))
    device.gate.set()
    assert_all_answered([held, *calls])
    assert calls[-1].future.exception() is not None


# Closing and cancelling


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_closing_while_busy_answers_or_fails_everyone(engines, max_in_flight):
    """close() with a forward under way and calls waiting: the first is answered, all are done."""
    device = Device()
    engine = engines(device, max_batch_tokens=100, max_in_flight=max_in_flight)
    held = busy(device, engine)
    calls = [engine.submit(texts_of(3, 30, 10 * i)) for i in range(10)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine.is_closed:
        time.sleep(0.001)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit([text(1)])
    device.gate.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive(), "close() hangs"
    assert_all_answered([held, *calls])
    assert_answers(held, [text(0)])
    for call in calls:
        assert isinstance(call.future.exception(), EngineClosedError)


def test_closing_under_load_answers_or_fails_everyone(engines):
    """Threads that call while another closes get their rows or EngineClosedError, never neither."""
    engine = engines(Device(), max_batch_tokens=50)
    started = threading.Barrier(17)

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        started.wait(TIMEOUT_S)
        if seed == 16:
            engine.close()
            return
        for _ in range(200):
            texts = random_texts(rng, 5, 20)
            try:
                assert_answers(engine.submit(texts), texts)
            except EngineClosedError:
                return

    in_threads(caller, 17)


def test_a_closed_engine_refuses_calls(engines):
    """A call after close is EngineClosedError; closing twice is harmless."""
    engine = engines(Device())
    engine.close()
    engine.close()
    assert engine.is_closed
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit([text(1)])


def test_cancelling_drops_what_has_not_run(engines):
    """A cancelled bulk call stops after the forward under way; others are answered."""
    device = Device()
    engine = engines(device, max_batch_tokens=10)
    device.gate.clear()
    bulk = engine.submit(texts_of(40, 10))
    device.wait_for_forward()
    texts = texts_of(1, 4, 500)
    other = engine.submit(texts)
    assert bulk.future.cancel()
    device.gate.set()
    assert_answers(other, texts)
    with pytest.raises(CancelledError):
        bulk.future.result(TIMEOUT_S)
    assert_answers(engine.submit(texts), texts)
    assert len(device.batches) == 3, f"{len(device.batches)} forwards"


def test_cancelling_one_of_merged_calls_harms_no_other(engines):
    """A call cancelled while its forward runs leaves its neighbours' rows in place."""
    device = Device()
    engine = engines(device, max_batch_tokens=1000)
    held = busy(device, engine)
    calls = [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(6))]
    device.gate.set()
    assert_answers(held, [text(0)])
    device.gate.clear()
    again = [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(6))]
    again[2][0].future.cancel()
    device.gate.set()
    for i, (call, texts) in enumerate(calls + again):
        if i != 8:
            assert_answers(call, texts)


def test_an_answered_call_is_forgotten(engines):
    """An idle engine holds no caller's vectors: they are freed when the caller is done."""
    for max_in_flight in (1, 2):
        engine = engines(Device(), max_in_flight=max_in_flight)
        rows = weakref.ref(engine.submit(texts_of(3, 4)).future.result(TIMEOUT_S))
        for _ in range(100):  # the engine's thread may still be on its way back to waiting
            if rows() is None:
                break
            time.sleep(0.02)
        gc.collect()
        assert rows() is None, f"max_in_flight={max_in_flight}: the answer is still held"


# Two in flight


def test_two_forwards_are_in_flight_and_never_three(engines):
    """On a device that computes behind our back, the next forward is launched before the wait."""
    device = AsyncDevice()
    engine = engines(device, max_batch_tokens=10, max_in_flight=2)
    device.gate.clear()
    texts = texts_of(30, 10)
    bulk = engine.submit(texts)
    device.wait_for_forward()
    device.wait_for_forward()
    device.gate.set()
    assert_answers(bulk, texts)
    assert device.most_in_flight == 2


def test_a_lone_forward_is_not_kept_waiting_for_a_second(engines):
    """With room for two in flight, a single call is answered without another coming."""
    engine = engines(AsyncDevice(), max_in_flight=2)
    for i in range(20):
        texts = texts_of(2, 5, i)
        assert_answers(engine.submit(texts), texts)


def test_two_in_flight_under_threads(engines):
    """Forty threads on a device with two forwards in flight and little room: each its own rows."""
    engine = engines(AsyncDevice(room=60), max_batch_tokens=300, max_in_flight=2)

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(5):
            texts = random_texts(rng, 12, 40)
            assert_answers(engine.submit(texts), texts)

    in_threads(caller, 40)


def test_out_of_memory_holds_no_failed_forward(engines):
    """When the error reaches the caller, nothing keeps the failed forward's own data alive."""

    class Memory:
        pass

    alive: list[weakref.ref] = []

    class Leaky(Device):
        def run(self, batch):
            memory = Memory()
            alive.append(weakref.ref(memory))
            return super().run(batch)

    engine = engines(Leaky(room=10), max_batch_tokens=1000)
    call = engine.submit(texts_of(1, 11))
    error = call.future.exception(TIMEOUT_S)
    assert isinstance(error, DeviceOutOfMemoryError)
    gc.collect()
    assert [one() for one in alive] == [None] * len(alive)


def test_a_lowered_budget_grows_back_when_there_is_room_again():
    """One moment without memory does not slow the engine for the rest of its life."""
    room = [10]

    def launch(batch: PackedBatch):
        if batch.num_tokens > room[0]:
            raise torch.OutOfMemoryError("no room")
        return lambda: np.eye(4, dtype=np.float32)[np.zeros(len(batch), int)]

    engine = Engine([Runner(launch, "cpu", 40)], width=4)
    try:
        ten = np.arange(10, dtype=np.int32)
        engine.submit([ten] * 4).future.result(TIMEOUT_S)
        assert engine.max_batch_tokens == 10, engine.max_batch_tokens
        room[0] = 40
        for _ in range(2000):
            engine.submit([ten]).future.result(TIMEOUT_S)
        assert engine.max_batch_tokens == 40, engine.max_batch_tokens
        num_forwards = engine.num_forwards
        engine.submit([ten] * 4).future.result(TIMEOUT_S)
        assert engine.num_forwards == num_forwards + 1
    finally:
        engine.close()
