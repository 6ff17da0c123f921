"""Several devices behind one engine: who computes what, and what happens when one fails."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding_integrations import ConfigError, EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.core.config import EngineConfig
from qwen3_embedding_integrations.core.devices import device_names, one_each, together
from qwen3_embedding_integrations.core.engine import Engine, Runner
from qwen3_embedding_integrations.core.loading import load_model, resolve
from qwen3_embedding_integrations.errors import (
    DeviceOutOfMemoryError,
    EngineClosedError,
    EngineError,
)
from tests.core.test_engine import (
    CRASH,
    POISON,
    TIMEOUT_S,
    WIDTH,
    AsyncDevice,
    Device,
    assert_all_answered,
    assert_answers,
    assert_each_its_own,
    in_threads,
    random_texts,
    text,
    texts_of,
)


class Losable(Device):
    """A device that, once it has run LOST, fails whatever it is asked, as a CUDA device does."""

    is_lost = False

    def run(self, batch):
        if self.is_lost or (batch.input_ids == CRASH).any():
            self.is_lost = True
            raise RuntimeError("an illegal memory access was encountered")
        return super().run(batch)

    def probe(self) -> None:
        if self.is_lost:
            raise RuntimeError("an illegal memory access was encountered")


@pytest.fixture
def engines():
    """Make engines over several devices; closed when the test ends, gates opened."""
    made: list[tuple[list[Device], Engine]] = []

    def make(devices: list[Device], max_batch_tokens: int = 100, max_in_flight: int = 1) -> Engine:
        runners = [
            Runner(
                device,
                f"cuda:{i}",
                max_batch_tokens,
                max_in_flight,
                probe=device.probe if isinstance(device, Losable) else None,
            )
            for i, device in enumerate(devices)
        ]
        engine = Engine(runners, width=WIDTH)
        made.append((devices, engine))
        return engine

    yield make
    for devices, engine in made:
        for device in devices:
            device.gate.set()
        engine.close()


# Rows and shares


def test_every_caller_gets_its_own_rows_from_two_devices(engines):
    """Forty callers over two devices with little room: each its own rows, both devices at work."""
    devices = [AsyncDevice(room=60), Device(room=100)]
    engine = engines(devices, max_batch_tokens=200, max_in_flight=2)

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(4):
            texts = random_texts(rng, 20, 40)
            prefix_ids = rng.choice([(), (1, 2, 3)])
            assert_answers(engine.submit(texts, prefix_ids), texts, prefix_ids)

    in_threads(caller, 40)
    assert all(device.batches for device in devices)
    assert engine.num_forwards == sum(len(device.batches) for device in devices)
    assert list(engine.forwards_by_device.values()) == [len(one.batches) for one in devices]


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=12), min_size=1, max_size=8),
    st.integers(1, 120),
    st.integers(1, 4),
)
def test_any_calls_on_any_number_of_devices(calls, budget, num_devices):
    """Whatever the lengths, the budget and the number of devices: every call its own rows."""
    devices = [AsyncDevice(room=60 + 10 * i) for i in range(num_devices)]
    engine = Engine([Runner(device, "cpu", budget, 2) for device in devices], width=WIDTH)
    assert_each_its_own(engine, calls)


def test_a_bulk_call_runs_on_all_devices_at_once(engines):
    """The shares of one call run side by side: each device is in its own before any is done."""
    devices = [Device(), Device(), Device()]
    for device in devices:
        device.gate.clear()
    engine = engines(devices)
    texts = texts_of(12, 50)
    call = engine.submit(texts)
    for device in devices:
        device.wait_for_forward()
    for device in devices:
        device.gate.set()
    assert_answers(call, texts)


def test_a_busy_device_gets_nothing_more(engines):
    """While one device is held up, the others do all the rest: shares go by load."""
    slow, fast = Device(), Device()
    slow.gate.clear()
    fast.gate.clear()
    engine = engines([slow, fast])
    texts = texts_of(20, 50)
    call = engine.submit(texts)
    slow.wait_for_forward()
    fast.wait_for_forward()
    fast.gate.set()
    for _ in range(8):
        fast.wait_for_forward()
    assert slow.num_texts == [2]
    assert sum(fast.num_texts) == 18
    slow.gate.set()
    assert_answers(call, texts)


# Failure


def test_out_of_memory_on_one_device_lowers_only_its_own_budget(engines):
    """A device with less room runs smaller batches; the other keeps its own."""
    devices = [Device(room=40), Device()]
    engine = engines(devices, max_batch_tokens=200)
    for _ in range(10):
        texts = texts_of(40, 20)
        assert_answers(engine.submit(texts), texts)
    assert engine.max_batch_tokens < 100
    large = max(batch.num_keys for batch in devices[1].batches[-10:])
    assert large > engine.max_batch_tokens, f"the sound device ran {large} tokens at most"


def test_a_text_too_long_names_the_device(engines):
    """A text without room on any device is DeviceOutOfMemoryError with the device's name."""
    engine = engines([Device(room=10), Device(room=10)])
    error = engine.submit([np.full(11, 1, np.int32)]).future.exception(TIMEOUT_S)
    assert isinstance(error, DeviceOutOfMemoryError)
    assert error.device in {"cuda:0", "cuda:1"}


def test_a_poisoned_text_fails_only_its_own_call(engines):
    """On two devices as on one, the call with the bad text fails and no other."""
    engine = engines([Device(), Device()], max_batch_tokens=1000)
    calls = [(engine.submit(texts), texts) for texts in (texts_of(2, 5, 10 * i) for i in range(20))]
    poisoned = engine.submit([text(1), text(POISON)])
    assert isinstance(poisoned.future.exception(TIMEOUT_S), EngineError)
    for call, texts in calls:
        assert_answers(call, texts)


def test_a_lost_device_is_told_of_and_gets_nothing_more(engines):
    """The call that lost a device gets its name and reason; the others go on without it."""
    lost, sound = Losable(), Losable()
    sound.gate.clear()
    engine = engines([lost, sound], max_batch_tokens=100)
    held = engine.submit(texts_of(2, 50))  # runs on whichever was first
    fatal = engine.submit([text(CRASH)])
    sound.gate.set()
    error = fatal.future.exception(TIMEOUT_S)
    assert isinstance(error, EngineError)
    assert "is lost: an illegal memory access" in str(error)
    assert "start the process anew" in str(error)
    assert_all_answered([held])
    dead, alive = (lost, sound) if lost.is_lost else (sound, lost)
    num_batches = len(dead.batches)
    for i in range(20):
        texts = texts_of(5, 30, 10 * i)
        assert_answers(engine.submit(texts), texts)
    assert len(dead.batches) == num_batches, "the lost device was asked again"
    assert len(alive.batches) >= 20
    assert not engine.is_closed


def test_the_last_device_lost_closes_the_engine(engines):
    """When no device is left, whoever waits is told why, and later calls are refused."""
    device = Losable()
    engine = engines([device], max_in_flight=2)
    device.gate.clear()
    fatal = engine.submit([text(CRASH)])
    device.wait_for_forward()
    calls = [engine.submit(texts_of(3, 30, 10 * i)) for i in range(5)]
    device.gate.set()
    assert_all_answered([fatal, *calls])
    for call in calls:
        assert "cuda:0 is lost" in str(call.future.exception())
    while not engine.is_closed:
        threading.Event().wait(0.001)
    with pytest.raises(EngineClosedError, match="cuda:0 is lost"):
        engine.submit([text(1)])


def test_an_error_that_loses_nothing_keeps_the_device(engines):
    """A forward that fails on a sound device fails its call alone; the device is asked again."""
    device = Losable()
    engine = engines([device])
    error = engine.submit([text(POISON)]).future.exception(TIMEOUT_S)
    assert "the forward failed: poisoned" in str(error)
    texts = texts_of(3, 4)
    assert_answers(engine.submit(texts), texts)


# Closing


def test_closing_answers_what_runs_on_each_device(engines):
    """close() waits for the forward of every device, and fails what waits behind them."""
    devices = [Device(), Device()]
    for device in devices:
        device.gate.clear()
    engine = engines(devices)
    running = [(engine.submit(texts), texts) for texts in (texts_of(1, 90, i) for i in range(2))]
    for device in devices:
        device.wait_for_forward()
    waiting = [engine.submit(texts_of(1, 90, 10 + i)) for i in range(5)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine.is_closed:
        threading.Event().wait(0.001)
    for device in devices:
        device.gate.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    for call, texts in running:
        assert_answers(call, texts)
    for call in waiting:
        assert isinstance(call.future.exception(TIMEOUT_S), EngineClosedError)


# A model on two devices


def test_an_encoder_over_two_engines_gives_one_encoders_vectors():
    """Two loaded copies behind one encoder give the vectors of one, in order, both at work."""
    config = EncoderConfig(model="tiny", dtype="float32", device="cpu", max_batch_tokens=64)
    loaded = [load_model(config.engine) for _ in range(2)]
    launches: list[Callable] = [one.engine._workers[0]._launch for one in loaded]
    runners = [Runner(launch, f"cpu {i}", 64) for i, launch in enumerate(launches)]
    engine = Engine(runners, width=loaded[0].architecture.hidden_size)
    texts = [f"text {i} " * (1 + i % 9) for i in range(120)]
    try:
        expected = Qwen3Encoder.over(loaded[0], config).encode_documents(texts)
        both = Qwen3Encoder.over(replace(loaded[0], engine=engine), config)
        vectors = both.encode_documents(texts)
        queries = both.encode_queries(texts)
        assert np.abs(vectors - expected).max() < 1e-6
        assert (np.abs(queries - vectors).max(axis=1) > 1e-3).all()
        assert all(count > 0 for count in engine.forwards_by_device.values())
    finally:
        engine.close()
        for one in loaded:
            one.engine.close()


# Names


def test_a_list_of_cards_is_taken_apart():
    """One name is one device, a list several, in its order."""
    assert device_names("cpu") == ["cpu"]
    assert device_names("auto") == ["auto"]
    assert device_names("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]
    configs = one_each(EngineConfig(device="cuda:1,cuda:0", dtype="float16"))
    assert [one.device for one in configs] == ["cuda:1", "cuda:0"]
    assert {one.dtype for one in configs} == {"float16"}


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0,cpu", "must be CUDA cards"),
        ("cpu,cpu", "must be CUDA cards"),
        ("cuda:0,", "must be CUDA cards"),
        ("cuda,cuda:1", "must be CUDA cards"),
        ("cuda:1,cuda:1", "named twice"),
        ("cuda:0,cuda:98,cuda:99", "CUDA devices are visible"),
    ],
)
def test_a_list_that_cannot_be_is_refused(device, message):
    """Other devices, a card named twice or one that is not there: a ConfigError says which."""
    with pytest.raises(ConfigError, match=message):
        resolve(EngineConfig(model="tiny", device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_all_cards_need_one():
    """Without any card, "cuda:all" is refused as a card that is not there."""
    with pytest.raises(ConfigError, match="0 CUDA devices are visible"):
        resolve(EngineConfig(model="tiny", device="cuda:all"))


def test_cards_of_different_dtypes_are_not_mixed():
    """A vector must not depend on the card: where two dtypes come of "auto", set one."""
    config = EngineConfig(dtype="bfloat16")
    same = [replace(config, device="cuda:0"), replace(config, device="cuda:1")]
    assert together(same).device == "cuda:0,cuda:1"
    other = [same[0], replace(same[1], dtype="float32")]
    with pytest.raises(ConfigError, match=r"cuda:0 bfloat16, cuda:1 float32.*set dtype"):
        together(other)


@pytest.mark.cuda
def test_all_cards_together_give_the_processors_vectors():
    """Every visible card behind one encoder: each text has the vector the processor gives it."""
    texts = [f"text {i} " * (1 + i % 40) for i in range(400)]
    options = {"model": "tiny", "dtype": "float32", "max_batch_tokens": 512}
    with Qwen3Encoder(EncoderConfig(device="cpu", **options)) as encoder:
        expected = encoder.encode_documents(texts)
    with Qwen3Encoder(EncoderConfig(device="cuda:all", **options)) as encoder:
        vectors = encoder.encode_documents(texts)
    cosine = (vectors * expected).sum(axis=1).min()
    assert cosine > 0.9999, f"worst cosine {cosine}"


@pytest.mark.cuda
def test_all_cards_are_named_by_number():
    """On a machine with cards, "cuda:all" names each of them."""
    expected = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    assert device_names("cuda:all") == expected
    assert resolve(EngineConfig(model="tiny", device="cuda:all")).device == ",".join(expected)


def test_one_device_stays_one():
    """What one device resolves to is not changed, and resolving it again changes nothing."""
    resolved = resolve(EngineConfig(model="tiny", device="cpu"))
    assert resolved.device == "cpu"
    assert together([resolved]) == resolved
