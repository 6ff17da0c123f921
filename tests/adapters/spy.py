"""An encoder whose border with the device is watched: which token ids the model reads, and when.

Nothing is patched: an engine of our own launches its batches through the engine of a loaded model,
noting each, and may be held until the test lets it go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.contract import Vectors
from qwen3_embedding_integrations.core.engine import Engine, Runner
from qwen3_embedding_integrations.core.loading import load_model
from qwen3_embedding_integrations.core.packing import PackedBatch

PATIENCE_S = 60  # for what never comes; nothing that works waits so long


class Spy:
    """A launch that notes what it launches, and waits at its gate when that is closed."""

    def __init__(self, device: Engine) -> None:
        self._device = device
        self._noted = threading.Condition()
        self._sequences: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: PackedBatch) -> Callable[[], Vectors]:
        rows = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
        with self._noted:
            self._sequences += [[*batch.prefix_ids, *row.tolist()] for row in rows]
            self._noted.notify_all()
        if not self.gate.wait(PATIENCE_S):
            raise RuntimeError("nobody opened the gate: whoever should have was blocked")
        return self._device.submit(rows, batch.prefix_ids).future.result

    def take(self) -> list[list[int]]:
        """Return every sequence the model has read since the last call, in order of reading."""
        with self._noted:
            taken, self._sequences = self._sequences, []
            return taken

    def wait_for(self, *wanted: list[int]) -> bool:
        """Wait until the model has begun to read one of these sequences; False if it never does."""
        with self._noted:
            return self._noted.wait_for(
                lambda: any(ids in self._sequences for ids in wanted), PATIENCE_S
            )


class Spied:
    """An encoder, what spies on it, and the tokenizer file as the `tokenizers` library reads it."""

    def __init__(self, encoder: Qwen3Encoder, spy: Spy, tokenizer: Tokenizer) -> None:
        self.encoder = encoder
        self.spy = spy
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text by the library itself."""
        return self._tokenizer.encode(text).ids


@contextmanager
def spied_encoder(**options: object) -> Iterator[Spied]:
    """Yield an encoder of its own weights ("tiny" in float32 unless told) with a spy in it."""
    config = EncoderConfig.from_options(**{"model": "tiny", "dtype": "float32", **options})
    loaded = load_model(config.engine)
    spy = Spy(loaded.engine)
    runner = Runner(spy, "cpu", int(loaded.config.max_batch_tokens))
    engine = Engine([runner], width=loaded.architecture.hidden_size)
    encoder = Qwen3Encoder.over(replace(loaded, engine=engine), config)
    try:
        yield Spied(encoder, spy, Tokenizer.from_file(str(loaded.folder / "tokenizer.json")))
    finally:
        spy.gate.set()
        encoder.close()
        loaded.engine.close()
