"""The queue's bound and what an engine counts: who is refused, and who gives room back."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from qwen3_embedding_integrations import EncoderConfig, InputError, QueueFullError, Qwen3Encoder
from qwen3_embedding_integrations.core.engine import Engine, Runner
from qwen3_embedding_integrations.core.packing import PackedBatch

WIDTH = 4
TIMEOUT_S = 60


class Gate:
    """A device that answers each forward when it is let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.has_started = threading.Event()

    def __call__(self, batch: PackedBatch):
        self.has_started.set()

        def wait() -> np.ndarray:
            assert self.open.wait(TIMEOUT_S)
            return np.ones((len(batch), WIDTH), np.float32)

        return wait


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def engine(gate: Gate):
    """An engine of at most 100 waiting tokens whose device holds a forward of one token."""
    engine = Engine([Runner(gate, "cpu", 50)], width=WIDTH, max_queue_tokens=100)
    engine.submit([np.zeros(1, np.int32)])
    assert gate.has_started.wait(TIMEOUT_S)
    yield engine
    gate.open.set()
    engine.close()


def tokens(number: int) -> list[np.ndarray]:
    return [np.zeros(number, np.int32)]


def test_a_full_queue_refuses(engine: Engine, gate: Gate) -> None:
    """A call beyond the bound is refused with the numbers; those that wait are answered."""
    waiting = [engine.submit(tokens(40)), engine.submit(tokens(60))]
    assert engine.counts().waiting_tokens == 100
    with pytest.raises(QueueFullError, match="1 tokens is refused: 100 wait") as refused:
        engine.submit(tokens(1))
    assert refused.value.num_waiting_tokens == 100
    gate.open.set()
    for call in waiting:
        assert call.future.result(TIMEOUT_S).shape == (1, WIDTH)
    assert engine.counts().waiting_tokens == 0
    assert engine.submit(tokens(100)).future.result(TIMEOUT_S).shape == (1, WIDTH)


def test_a_call_larger_than_the_queue_runs_when_nothing_waits(engine: Engine, gate: Gate) -> None:
    """What alone is more than the bound is not refused for ever: it may wait alone."""
    large = engine.submit([np.zeros(40, np.int32)] * 10)
    with pytest.raises(QueueFullError):
        engine.submit(tokens(1))
    gate.open.set()
    assert large.future.result(TIMEOUT_S).shape == (10, WIDTH)


def test_who_leaves_gives_the_room_back(engine: Engine) -> None:
    """A cancelled call's tokens do not wait any more, before the device reaches its place."""
    first = engine.submit(tokens(90))
    with pytest.raises(QueueFullError):
        engine.submit(tokens(20))
    assert first.future.cancel()
    assert engine.counts().waiting_tokens == 0
    assert engine.counts().waiting_calls == 1, "the forward under way"
    engine.submit(tokens(20))
    assert engine.counts().waiting_tokens == 20


def test_what_is_put_back_waits_again(gate: Gate) -> None:
    """Counts return to nothing after forwards that were split for want of room."""
    room = 30

    def launch(batch: PackedBatch):
        if batch.num_keys > room:
            raise MemoryError("no room")
        return lambda: np.ones((len(batch), WIDTH), np.float32)

    engine = Engine([Runner(launch, "cpu", 100)], width=WIDTH, max_queue_tokens=10_000)
    calls = [engine.submit([np.zeros(10, np.int32)] * 9) for _ in range(20)]
    for call in calls:
        assert call.future.result(TIMEOUT_S).shape == (9, WIDTH)
    counts = engine.counts()
    engine.close()
    assert (counts.waiting_tokens, counts.waiting_calls) == (0, 0)
    assert counts.out_of_memory == counts.retries > 0
    assert sum(counts.fills) == counts.forwards
    assert counts.tokens >= 20 * 90


async def test_token_ids_are_the_texts_own(tiny: Qwen3Encoder) -> None:
    """Ids with and without the end token give the document's vector; a second end is refused."""
    text = "The tower is 324 metres tall. 塔高三百二十四米。"
    ids = tiny._loaded.tokenizer.encode([text])[0].tolist()
    expected = tiny.encode_documents([text, text])
    vectors = await tiny.aencode_token_ids([ids, ids[:-1]])
    difference = np.abs(vectors - expected).max()
    assert difference < 1e-6, difference
    for wrong, says in (
        ([*ids, ids[-1]], "more than once"),
        ([], "no token ids"),
        ([-1], "ids from -1"),
        ([10**30], "not a list of token ids"),
        ([24_000], "the model knows 0 to 23999"),
    ):
        with pytest.raises(InputError, match=says) as refused:
            await tiny.aencode_token_ids([ids, wrong])
        assert refused.value.index == 1


@pytest.mark.parametrize("on_too_long", ["truncate", "error", "chunk_mean"])
async def test_long_token_ids_follow_the_rule(tiny: Qwen3Encoder, on_too_long) -> None:
    """Ids beyond max_length are cut before the end token, refused, or averaged by parts."""
    config = EncoderConfig(
        model="tiny", dtype="float32", max_length=16, on_too_long=on_too_long, dimensions=64
    )
    ids = list(range(1000, 1040))
    with Qwen3Encoder(config) as encoder:
        if on_too_long == "error":
            with pytest.raises(InputError, match="41 tokens, max_length is 16"):
                await encoder.aencode_token_ids([ids])
            return
        vectors = await encoder.aencode_token_ids([ids])
    parts = [ids[:15]] if on_too_long == "truncate" else [ids[:15], ids[15:30], ids[30:]]
    each = await tiny.aencode_token_ids(parts)
    expected = np.average(each, axis=0, weights=[len(part) for part in parts])[:64]
    difference = np.abs(vectors[0] - expected / np.linalg.norm(expected)).max()
    assert difference < 1e-6, difference


async def test_counted(tiny: Qwen3Encoder) -> None:
    """What is counted is what the model read; more than is allowed in a call is refused."""
    encoded = await tiny.aencode_counted(["one two three"], "documents")
    assert encoded.num_tokens == tiny.count_tokens("one two three")
    instruction = "Given a question, find the answer"
    queries = await tiny.aencode_counted(["a", "b"], "queries", instruction=instruction)
    prompt = f"Instruct: {instruction}\nQuery:"
    assert queries.num_tokens == sum(tiny.count_tokens(prompt + text) for text in "ab")
    difference = np.abs(queries.vectors - tiny.encode_queries(["a", "b"], instruction=instruction))
    assert difference.max() < 1e-6
    with pytest.raises(InputError, match="4 tokens, 3 are allowed"):
        await tiny.aencode_counted(["a", "b"], "documents", max_tokens=3)
