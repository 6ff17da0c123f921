"""Qwen3Encoder: texts to vectors, sync, async and streamed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import EmbeddingContract, EncoderStats
from .core.config import MAX_LENGTH, MIN_DIMENSIONS, EncoderConfig, check_instruction
from .core.prompts import query_prompt
from .core.streaming import WINDOW, stream_windows
from .errors import ConfigError
from .waiting import aresults_of, results_of, submit_in_thread

if TYPE_CHECKING:
    from .core.calls import Call
    from .core.inputs import Inputs
    from .core.loading import LoadedModel
    from .core.tokenizer import Tokenizer

Vectors = npt.NDArray[np.float32]


class Qwen3Encoder:
    """Qwen3-Embedding: texts to unit vectors, the same ones whoever calls and in whatever batch.

    Loads the model; when the constructor returns, it is ready. Every method may be called from any
    thread or event loop; calls that wait together run together. Raises ConfigError,
    ModelLoadError.

    >>> with Qwen3Encoder("tiny") as encoder:
    ...     documents = encoder.encode_documents(["Paris is in France.", "巴黎是法国首都。"])
    ...     queries = encoder.encode_queries(["capital of France"])
    >>> (queries @ documents.T).shape
    (1, 2)
    """

    def __init__(self, config: EncoderConfig | str | None = None) -> None:
        from .core.loading import load_model

        config = EncoderConfig.of(config)
        if config.is_remote:
            raise ConfigError(
                f"base_url is {config.base_url!r}, and Qwen3Encoder computes here; use "
                "RemoteEncoder, or shared_encoder(config)"
            )
        loaded = load_model(config.engine)
        try:
            self._init(config, loaded)
        except BaseException:
            loaded.engine.close()
            raise
        # An encoder nobody holds any more ends its thread and frees its weights.
        weakref.finalize(self, loaded.engine.stop).atexit = False

    @classmethod
    def over(cls, loaded: LoadedModel[Tokenizer], config: EncoderConfig) -> Qwen3Encoder:
        """Return an encoder that shares a loaded model with others; see `shared_encoder`."""
        encoder = cls.__new__(cls)
        encoder._init(config, loaded)
        return encoder

    def _init(self, config: EncoderConfig, loaded: LoadedModel[Tokenizer]) -> None:
        from .core.inputs import InputRules

        positions = loaded.architecture.max_positions
        if config.max_length > positions and config.max_length != MAX_LENGTH:
            raise ConfigError(
                f"max_length is {config.max_length}, {config.model} reads {positions} tokens at "
                "most; lower max_length"
            )
        width = loaded.architecture.hidden_size
        if config.dimensions is not None and config.dimensions > width:
            raise ConfigError(
                f"dimensions is {config.dimensions}, {config.model} makes {width}; choose a number "
                f"from {MIN_DIMENSIONS} to {width}, or None"
            )
        max_length = min(config.max_length, positions)
        for room in loaded.rooms:  # now, not after hours, at the first text so long
            room.check_length(max_length)
        self.config = config
        self.dimensions = config.dimensions or width
        self.model_dimensions = width
        self.max_length = max_length
        self._loaded = loaded
        self._rules = InputRules(self.max_length, config.on_too_long, config.on_empty)
        self._counts_lock = threading.Lock()
        self._num_texts = self._num_tokens = self._num_truncated = 0

    def encode_queries(
        self,
        queries: Sequence[str],
        *,
        instruction: str | None = None,
        show_progress: bool | None = None,
    ) -> Vectors:
        """Return one unit vector per query, (N, dimensions) float32, in the order given.

        Each query is read behind the instruction (`instruction`, else the config's). Symmetric
        tasks (similarity, classification) encode both sides with this method. Raises InputError
        for a text that cannot be encoded, EngineError when the device fails.
        """
        return self._result(
            self._submit(queries, "queries", self._prompt(instruction)), show_progress
        )

    def encode_documents(
        self, documents: Sequence[str], *, show_progress: bool | None = None
    ) -> Vectors:
        """Return one unit vector per document, (N, dimensions) float32, in the order given.

        `show_progress=None` draws a bar on a terminal when the call takes long. Raises as
        `encode_queries`.
        """
        return self._result(self._submit(documents, "documents"), show_progress)

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        """Return what `encode_queries` returns, without blocking the event loop."""
        prompt = self._prompt(instruction)
        return await self._aresult(queries, "queries", prompt)

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return what `encode_documents` returns, without blocking the event loop."""
        return await self._aresult(documents, "documents")

    def stream_documents(
        self, documents: Iterable[str], *, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Yield the vectors of any iterable, window by window, each (up to `window`, dimensions).

        While you use one window, the next is encoded; no more than two are held, so an endless
        iterable needs little memory. A text that cannot be encoded raises InputError with its
        index in the whole stream, after the windows before it were yielded.
        """
        return stream_windows(
            documents,
            window,
            submit=lambda texts, first: self._submit(texts, "documents", first_index=first),
            result=self._result,
            cancel=lambda job: job.call.future.cancel(),
        )

    def count_tokens(self, document: str) -> int:
        """Return how many tokens the model would read for a document, the end token included."""
        return len(self._loaded.tokenizer.encode([document])[0])

    def stats(self) -> EncoderStats:
        """Return the counts of texts, tokens, truncated texts, forwards and retries so far."""
        engine = self._loaded.engine
        with self._counts_lock:
            counts = self._num_texts, self._num_tokens, self._num_truncated
        return EncoderStats(*counts, engine.num_forwards, engine.num_retries)

    @property
    def contract(self) -> EmbeddingContract:
        """The facts that make this encoder's vectors what they are.

        The first access reads a local model's files once more, to hash them.
        """
        return self._contract

    @cached_property
    def _contract(self) -> EmbeddingContract:
        config = self.config
        is_folder = Path(config.model).expanduser().is_dir()
        return EmbeddingContract(
            model=Path(config.model).expanduser().resolve().name if is_folder else config.model,
            revision=self._loaded.content_hash,
            dimensions=self.dimensions,
            instruction=config.instruction,
            max_length=self.max_length,
            on_too_long=config.on_too_long,
            dtype=self._loaded.config.dtype,
            quantization=self._loaded.config.quantization,
            package_version=version("qwen3-embedding-integrations"),
        )

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused: closed, or copied into another process by a fork."""
        return self._loaded.engine.is_closed

    def close(self) -> None:
        """Answer what runs, fail what waits with EngineClosedError, free the weights.

        Closing an encoder from `shared_encoder` closes it for everyone who shares its weights;
        the next `shared_encoder` loads them again.
        """
        self._loaded.engine.close()

    def __enter__(self) -> Qwen3Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        from .sharing import shared_encoder

        return shared_encoder, (self.config,)  # weights do not travel: the other side loads them

    def __copy__(self) -> Qwen3Encoder:
        return self

    def __deepcopy__(self, memo: object) -> Qwen3Encoder:
        return self  # hosts copy their settings; the weights stay one

    def __repr__(self) -> str:
        loaded = self._loaded.config
        return f"Qwen3Encoder({self.config.model!r}, {self.dimensions}, {loaded.device!r})"

    def _prompt(self, instruction: str | None) -> str:
        if instruction is not None:
            check_instruction(instruction)
        return query_prompt(self.config.instruction if instruction is None else instruction)

    def _submit(
        self, texts: Sequence[str], word: str, prompt: str | None = None, first_index: int = 0
    ) -> _Job:
        from .core.inputs import prepare

        inputs = prepare(
            self._loaded.tokenizer, texts, word, self._rules, prompt=prompt, first_index=first_index
        )
        # Parts of a text are averaged at the model's full width: a cut of the mean is then the
        # mean at fewer dimensions, as for any other text.
        width = self.dimensions if inputs.pieces is None else self.model_dimensions
        call = self._loaded.engine.submit(inputs.sequences, inputs.prefix_ids, width=width)
        with self._counts_lock:
            self._num_texts += len(texts)
            self._num_tokens += inputs.num_tokens
            self._num_truncated += inputs.num_truncated
        return _Job(inputs, call)

    def _result(self, job: _Job, show_progress: bool | None = False) -> Vectors:
        return self._pooled(job, results_of(job, show_progress))

    async def _aresult(self, *arguments: Any) -> Vectors:
        job = await submit_in_thread(self._submit, *arguments)
        return self._pooled(job, await aresults_of(job))

    def _pooled(self, job: _Job, vectors: Vectors) -> Vectors:
        if job.inputs.pieces is None:
            return vectors
        means = job.inputs.pool(vectors)[:, : self.dimensions]
        return means / np.linalg.norm(means, axis=1, keepdims=True)


class _Job(NamedTuple):
    """A call under way and how its vectors become the answer."""

    inputs: Inputs
    call: Call
