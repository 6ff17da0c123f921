"""shared_encoder: one copy of the weights per process, whoever asks, also after a fork."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    EngineClosedError,
    ModelLoadError,
    shared_encoder,
)
from tests.checkpoints import SHAPE_SMALL, write_checkpoint

ROOT = Path(__file__).parent.parent
NUM_TOKENS = SHAPE_SMALL["vocab_size"]


@pytest.fixture
def checkpoint(tmp_path, request):
    """Write a model whose embedding table has a width of its own, to count the copies."""
    width = 40 + 8 * (sum(map(ord, request.node.name)) % 50)
    shape = SHAPE_SMALL | {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 1}
    return write_checkpoint(tmp_path / "model", shape), width


def num_copies(width: int) -> int:
    """Return how many embedding tables of this width live in the process."""
    gc.collect()
    shape = (NUM_TOKENS, width)
    return sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects())


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "qwen3-engine"}


def test_first_calls_from_many_threads_load_one_model(checkpoint):
    """Eight threads that ask at once get one encoder, with one engine and one copy of weights."""
    folder, width = checkpoint
    before, barrier = engine_threads(), threading.Barrier(8)

    def ask(_: int):
        barrier.wait(30)
        return shared_encoder(EncoderConfig(model=str(folder), dtype="float32"))

    with ThreadPoolExecutor(8) as pool:
        encoders = list(pool.map(ask, range(8)))
    assert all(encoder is encoders[0] for encoder in encoders)
    assert len(engine_threads() - before) == 1
    assert num_copies(width) == 1
    encoders[0].close()


def test_configs_that_read_otherwise_share_the_weights(checkpoint):
    """Dimensions, instruction, lengths and rules ask for no second copy; the encoders differ."""
    folder, width = checkpoint
    before = engine_threads()
    options = [
        {},
        {"dimensions": 32},
        {"instruction": "Retrieve semantically similar text"},
        {"max_length": 64},
        {"on_too_long": "chunk_mean"},
        {"on_empty": "embed"},
    ]
    encoders = [
        shared_encoder(EncoderConfig(model=str(folder), dtype="float32", **one)) for one in options
    ]
    assert len({id(encoder) for encoder in encoders}) == len(options)
    assert len(engine_threads() - before) == 1
    assert num_copies(width) == 1
    vectors = encoders[0].encode_documents(["a"])
    narrow = vectors[:, :32] / np.linalg.norm(vectors[:, :32], axis=1)
    assert np.abs(encoders[1].encode_documents(["a"]) - narrow).max() < 1e-6
    assert encoders[0].stats().texts == 1, "texts of another encoder were counted"
    encoders[0].close()


def test_auto_and_what_it_comes_to_are_one_model(checkpoint):
    """Spelling out what "auto" chooses asks for no second copy."""
    folder, width = checkpoint
    first = shared_encoder(str(folder))
    loaded = first.contract.dtype
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    second = shared_encoder(EncoderConfig(model=str(folder), dtype=loaded, device=device))
    if not torch.backends.mps.is_available():
        assert num_copies(width) == 1
    assert (first.encode_documents(["a"]) == second.encode_documents(["a"])).all()
    first.close()


def test_other_weights_are_another_model(checkpoint):
    """Another dtype has its own copy and engine: one answer never depends on the other."""
    folder, width = checkpoint
    first = shared_encoder(EncoderConfig(model=str(folder), dtype="float32"))
    second = shared_encoder(EncoderConfig(model=str(folder), dtype="float16"))
    assert num_copies(width) == 2
    first.close()
    assert second.encode_documents(["a"]).shape == (1, width)
    second.close()


def test_a_closed_encoder_is_replaced(checkpoint):
    """After close, the next call loads the weights again and returns an encoder that works."""
    folder, _ = checkpoint
    first = shared_encoder(str(folder))
    expected = first.encode_documents(["a"])
    first.close()
    second = shared_encoder(str(folder))
    assert second is not first
    assert (second.encode_documents(["a"]) == expected).all()
    with pytest.raises(EngineClosedError):
        first.encode_documents(["a"])
    assert shared_encoder(str(folder)) is second
    second.close()


def test_a_closed_encoder_is_let_go(checkpoint, tiny):
    """What was closed is not kept for good: the next call, for any model, frees all of it."""
    folder, _ = checkpoint
    encoder = shared_encoder(str(folder))
    tokenizer = weakref.ref(encoder._loaded.tokenizer)
    encoder.close()
    del encoder
    assert shared_encoder(tiny.config) is tiny
    gc.collect()
    assert tokenizer() is None


def test_a_failed_load_is_no_encoder(checkpoint, tmp_path):
    """A load that failed is tried again at the next call, and succeeds once the cause is gone."""
    folder, _ = checkpoint
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
            shared_encoder(str(folder))
    (tmp_path / "away").rename(weights)
    encoder = shared_encoder(str(folder))
    assert encoder.encode_documents(["a"]).shape[0] == 1
    with pytest.raises(ConfigError):
        shared_encoder(EncoderConfig(model=str(folder), dimensions=4097))
    encoder.close()


FORK = """
import os, sys, threading
import numpy as np
import torch
from qwen3_embedding_integrations import EncoderConfig, EngineClosedError, shared_encoder

CONFIG = EncoderConfig(model="tiny", dtype="float32")
TEXTS = ["The capital of China is Beijing.", "中国的首都是北京。"] * 40

def child(parents, expected):
    try:
        parents.encode_documents(["a"])
        return 1
    except EngineClosedError as error:
        if "does not survive a fork" not in str(error) or "shared_encoder" not in str(error):
            return 2
    if not parents.is_closed:
        return 3
    own = shared_encoder(CONFIG)
    if own is parents:
        return 4
    if np.abs(own.encode_documents(TEXTS) - expected).max() > 1e-6:
        return 5
    parents.close()  # closes nothing of the parent's
    own.close()
    return 0

torch.randn(1500, 1500) @ torch.randn(1500, 1500)  # this thread has a team of OpenMP threads
encoder = shared_encoder(CONFIG)
expected = encoder.encode_documents(TEXTS)
stop = threading.Event()

def load():
    while not stop.is_set():
        encoder.encode_documents(TEXTS[:3])

busy = [threading.Thread(target=load) for _ in range(IS_BUSY * 4)]
for thread in busy:
    thread.start()
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = child(encoder, expected)
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        print("child ended with", code)
        os._exit(1)
stop.set()
for thread in busy:
    thread.join()
difference = np.abs(encoder.encode_documents(TEXTS) - expected).max()
print("the parent still works:", difference < 1e-6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("is_busy", "parallelism"), [(False, None), (True, "true")], ids=["idle", "busy"]
)
def test_a_forked_child_uses_its_own_encoder(is_busy, parallelism):
    """After os.fork the child's shared_encoder works, the parent's object says what to do."""
    code = FORK.replace("IS_BUSY", str(int(is_busy)))
    environment = {name: v for name, v in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    if parallelism:
        environment["TOKENIZERS_PARALLELISM"] = parallelism
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.split("\n")[0] == "the parent still works: True"


def test_a_process_ends_in_peace_with_an_encoder_at_work():
    """A script that forgets to close, with calls under way, ends with status 0 and no noise."""
    code = """
import threading
from qwen3_embedding_integrations import shared_encoder
encoder = shared_encoder("tiny")
call = lambda: encoder.encode_documents(["text " * 200] * 200)
threading.Thread(target=call, daemon=True).start()
encoder.encode_queries(["a"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Fatal" not in run.stderr


def test_one_folder_is_one_model_from_anywhere(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative and an absolute path, "cpu" and "cpu:0", and copies share the weights."""
    monkeypatch.chdir(small_checkpoint.parent)
    relative = EncoderConfig(model=f"./{small_checkpoint.name}", dtype="float32", device="cpu")
    absolute = EncoderConfig(model=str(small_checkpoint), dtype="float32", device="cpu:0")
    encoder = shared_encoder(relative)
    other = shared_encoder(absolute)
    assert other.encode_documents(["one"]).shape == encoder.encode_documents(["one"]).shape
    assert encoder.stats().forwards == other.stats().forwards, "two engines"
    assert copy.deepcopy(encoder) is encoder
    encoder.close()
