"""Qwen3Encoder: texts to vectors, sync, async and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .contract import EmbeddingContract, EncoderStats, Vectors
from .core.config import EncoderConfig, fit_dimensions
from .errors import ConfigError, InputError
from .handle import Handle, TextEncoder
from .waiting import aresults_of, results_of, submit_in_thread

if TYPE_CHECKING:
    from .core.calls import Call
    from .core.inputs import InputRules, Inputs
    from .core.loaded import LoadedModel
    from .core.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """The vectors of a call, (N, dimensions) float32, and what the model read for them."""

    vectors: Vectors
    num_tokens: int  # instructions and end tokens included
    num_truncated: int  # texts


class _Job(NamedTuple):
    """A call under way and how its vectors become the answer."""

    inputs: Inputs
    call: Call


class Qwen3Encoder(Handle[EncoderConfig], TextEncoder[_Job]):
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
        from .core.exported import encoder_backend

        config = EncoderConfig.of(config)
        if config.is_remote:
            raise ConfigError(
                f"base_url is {config.base_url!r}, and Qwen3Encoder computes here; use "
                "RemoteEncoder, or shared_encoder(config)"
            )
        _, load = encoder_backend(config)
        self._own(config, load(config.engine))

    def _init(self, config: EncoderConfig, loaded: LoadedModel[Tokenizer]) -> None:
        from .core.inputs import InputRules

        super()._init(config, loaded)
        width = loaded.architecture.hidden_size
        self.dimensions = fit_dimensions(config, width)
        self.model_dimensions = width
        self._rules = InputRules(self.max_length, config.on_too_long, config.on_empty)
        self._num_texts = self._num_tokens = self._num_truncated = 0

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        """Return what `encode_queries` returns, without blocking the event loop."""
        encoded = await self.aencode_counted(queries, "queries", instruction=instruction)
        return encoded.vectors

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return what `encode_documents` returns, without blocking the event loop."""
        return (await self.aencode_counted(documents, "documents")).vectors

    async def aencode_token_ids(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        """Return one unit vector per list of token ids, (N, dimensions) float32.

        They are read as they stand, like a document; the end token is appended where it is
        missing. Raises InputError for ids that this model's tokenizer does not make.
        """
        return (await self.aencode_counted(token_ids, "token_ids")).vectors

    async def aencode_counted(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        word: Literal["queries", "documents", "token_ids"],
        *,
        instruction: str | None = None,
        on_too_long: Literal["truncate", "error", "chunk_mean"] | None = None,
        max_tokens: int | None = None,
    ) -> Encoded:
        """Return the vectors of queries, documents or token ids, with what the model read.

        `on_too_long` stands for the config's; more than `max_tokens` in all are an InputError.
        """
        prompt = self._prompt(instruction) if word == "queries" else ""
        rules = self._rules.with_too_long(on_too_long, ("truncate", "error", "chunk_mean"))
        job = await submit_in_thread(self._submit, texts, word, prompt, 0, rules, max_tokens)
        vectors = self._pooled(job, await aresults_of(job))
        return Encoded(vectors, job.inputs.num_tokens, job.inputs.num_truncated)

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
            revision=self.content_hash,
            lora=self._loaded.lora,
            dimensions=self.dimensions,
            instruction=config.instruction,
            max_length=self.max_length,
            on_too_long=config.on_too_long,
            dtype=self._loaded.config.dtype,
            quantization=self._loaded.quantization,
            package_version=version("qwen3-embedding-integrations"),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        from .sharing import shared_encoder

        return shared_encoder, (self.config,)  # weights do not travel: the other side loads them

    def __repr__(self) -> str:
        loaded = self._loaded.config
        return f"Qwen3Encoder({self.config.model!r}, {self.dimensions}, {loaded.device!r})"

    def _submit(
        self,
        texts: Sequence[Any],
        word: str,
        prompt: str = "",
        first_index: int = 0,
        rules: InputRules | None = None,
        max_tokens: int | None = None,
    ) -> _Job:
        from .core.inputs import prepare, prepare_ids

        tokenizer, rules = self._loaded.tokenizer, rules or self._rules
        if word == "token_ids":
            inputs = prepare_ids(tokenizer, texts, rules)
        else:
            inputs = prepare(tokenizer, texts, word, rules, prompt=prompt, first_index=first_index)
        if max_tokens is not None and inputs.num_tokens > max_tokens:
            raise InputError(
                f"{word} have {inputs.num_tokens} tokens, {max_tokens} are allowed in one call; "
                "divide them among several"
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

    def _cancel(self, job: _Job) -> None:
        job.call.future.cancel()

    def _pooled(self, job: _Job, vectors: Vectors) -> Vectors:
        if job.inputs.pieces is None:
            return vectors
        means = job.inputs.pool(vectors)[:, : self.dimensions]
        return means / np.linalg.norm(means, axis=1, keepdims=True)
