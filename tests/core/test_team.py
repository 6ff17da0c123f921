"""Parts of a batch on several threads: every text once, in its place, limits kept apart."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.config import EngineConfig
from qwen3_embedding_integrations.core.loading import load_model
from qwen3_embedding_integrations.core.packing import PackedBatch
from qwen3_embedding_integrations.core.team import MIN_TOKENS, NICE, Team, share_out
from qwen3_embedding_integrations.core.workers import Workers, on_fresh_thread
from qwen3_embedding_integrations.errors import ConfigError


def batch_of(lengths: list[int], prefix_ids: tuple[int, ...] = ()) -> PackedBatch:
    """Return a batch whose texts are told apart by their first token."""
    return PackedBatch.pack([np.full(n, i, np.int32) for i, n in enumerate(lengths)], prefix_ids)


class Recorder:
    """A forward that answers with each text's first token, and remembers who asked for what."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []  # texts, tokens, torch's threads

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        self.calls.append((len(batch), batch.num_tokens, torch.get_num_threads()))
        return torch.from_numpy(batch.input_ids[batch.cu_seqlens[:-1]].astype(np.float32))[:, None]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 8))
def test_every_text_is_in_one_part(lengths, num_parts):
    """Each row is in exactly one part, and no part is longer than the mean by more than a text."""
    parts = share_out(lengths, num_parts)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    tokens = [sum(lengths[row] for row in part) for part in parts]
    assert max(tokens) <= sum(lengths) / num_parts + max(lengths)


@pytest.mark.parametrize("num_members", [1, 2, 3, 5])
def test_results_come_back_in_order(num_members):
    """Whatever the number of members, row i of the result is text i's."""
    lengths = np.random.default_rng(0).integers(20, 90, 60).tolist()
    forward = Recorder()
    result = Team(num_members).run(forward, batch_of(lengths, prefix_ids=(7, 8)))
    assert result[:, 0].tolist() == list(range(60))
    assert len(forward.calls) == num_members
    assert sum(tokens for _, tokens, _ in forward.calls) == sum(lengths)


@pytest.mark.parametrize(
    "lengths",
    [[400], [400, MIN_TOKENS - 1], [300, 100], [5] * 10],
    ids=["one text", "a thin part", "uneven", "few tokens"],
)
def test_what_does_not_divide_is_one_forward(lengths):
    """A batch that cannot be shared out evenly runs as one, with all cores."""
    forward = Recorder()
    result = Team(2).run(forward, batch_of(lengths))
    assert result[:, 0].tolist() == list(range(len(lengths)))
    assert [call[:2] for call in forward.calls] == [(len(lengths), sum(lengths))]


def test_members_limit_themselves_alone():
    """Members compute on their part of the cores; other threads keep torch's own setting."""
    before = torch.get_num_threads()
    forward = Recorder()
    team = Team(2)
    for _ in range(3):
        team.run(forward, batch_of([100] * 8))
    assert {threads for _, _, threads in forward.calls} == {1}
    assert torch.get_num_threads() == before
    assert on_fresh_thread(torch.get_num_threads) == before


def test_a_thread_that_cannot_be_prepared_is_an_error():
    """Not a thread that is missing, whose tasks would wait for ever."""
    with pytest.raises(ZeroDivisionError):
        Workers(2, "prepared", prepare=lambda: 1 // 0)


def test_an_engine_keeps_all_cores():
    """What runs short calls beside the engine's thread limits itself, and the engine not at all."""
    loaded = load_model(EngineConfig(model="tiny", dtype="float32"))
    seen: list[int] = []
    for worker in loaded.engine._workers:
        launch = worker._launch

        def noting(batch, launch=launch):
            seen.append(torch.get_num_threads())
            return launch(batch)

        worker._launch = noting
    loaded.engine.submit([np.arange(9, dtype=np.int32)]).future.result()
    loaded.engine.close()
    assert seen == [torch.get_num_threads()]


def test_an_error_in_a_part_reaches_the_caller():
    """A member's failure is raised, and the team works on."""
    team = Team(2)

    def fail(batch: PackedBatch) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"{batch.num_tokens} tokens")

    with pytest.raises(torch.OutOfMemoryError, match="200 tokens"):
        team.run(fail, batch_of([100] * 4))
    assert team.run(Recorder(), batch_of([100] * 4))[:, 0].tolist() == [0, 1, 2, 3]


LATE = """
import threading
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder

def work():
    threading.main_thread().join()
    texts = [f"text {i} " * 20 for i in range(50)]
    assert early.encode_documents(texts).shape == (50, 256)
    with Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32")) as late:
        assert late.encode_documents(texts).shape == (50, 256)
    print("encoded")

early = Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32"))
threading.Thread(target=work).start()
"""


def test_other_threads_encode_on_after_the_main_thread():
    """A script whose main thread has ended still loads and encodes on the threads it started."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", LATE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "encoded\n", done.stderr


def test_all_parts_have_ended_when_one_failed():
    """Nothing of a failed batch runs any more when the caller hears of it."""
    ended: list[int] = []
    others_wait = threading.Event()

    def forward(batch: PackedBatch) -> torch.Tensor:
        if batch.input_ids[0] == 0:
            raise MemoryError("no room")
        others_wait.wait(0.2)
        ended.append(len(batch))
        return torch.zeros(len(batch), 1)

    with pytest.raises(MemoryError, match="no room"):
        Team(2).run(forward, batch_of([100, 100]))
    assert ended == [1]


def test_members_go_with_their_team():
    """A team that is gone leaves no thread behind."""
    before = set(threading.enumerate())
    team = Team(3)
    team.run(Recorder(), batch_of([100] * 6))
    members = {one for one in set(threading.enumerate()) - before if "member" in one.name}
    assert len(members) == 3
    del team
    gc.collect()
    for member in members:
        member.join(10)
        assert not member.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_members_give_way_when_asked(monkeypatch):
    """The members alone run at the niceness that the environment names; others stay as they are."""

    def niceness(batch: PackedBatch) -> torch.Tensor:
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return torch.full((len(batch), 1), float(own))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    lengths = [50] * 4
    assert set(Team(2).run(niceness, batch_of(lengths))[:, 0].tolist()) == {before}
    monkeypatch.setenv(NICE, "19")
    assert set(Team(2).run(niceness, batch_of(lengths))[:, 0].tolist()) == {19.0}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.parametrize("value", ["20", "-1", "low", ""])
def test_another_niceness_is_refused(monkeypatch, value):
    """What Linux does not know is an error that names the variable."""
    monkeypatch.setenv(NICE, value)
    with pytest.raises(ConfigError, match=f"{NICE} is {value!r}"):
        Team(2)


def test_a_team_at_work_leaves_another_batch_to_its_own_thread():
    """While the members are at a batch, the next is computed where it was asked for, whole."""
    entered, gate = threading.Event(), threading.Event()
    team = Team(2)

    def held(batch: PackedBatch) -> torch.Tensor:
        entered.set()
        assert gate.wait(30)
        return torch.zeros(len(batch), 1)

    first = threading.Thread(target=lambda: team.run(held, batch_of([50] * 4)), daemon=True)
    first.start()
    assert entered.wait(30)
    forward = Recorder()
    assert team.run(forward, batch_of([50] * 4))[:, 0].tolist() == [0, 1, 2, 3]
    assert [texts for texts, _, _ in forward.calls] == [4]
    gate.set()
    first.join(30)
    team.run(forward, batch_of([50] * 4))
    assert sorted(texts for texts, _, _ in forward.calls) == [2, 2, 4]
