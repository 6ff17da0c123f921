"""RemoteEncoder: the encoder's interface over an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, Literal, Unpack

import numpy as np

from ..contract import EmbeddingContract, EncoderStats
from ..core.config import (
    EncoderConfig,
    RemoteOptions,
    check_choice,
    check_range,
    split_urls,
)
from ..core.prompts import END_TOKEN
from ..core.texts import MAX_NAMED, InputRules, check_texts
from ..errors import ConfigError, InputError, NonFiniteOutputError, RemoteError
from ..handle import TextEncoder
from ..progress import watch
from .answers import Answer, Vectors
from .channel import Call, Channel
from .client import ServerClient
from .limits import RequestLimits, ask

logger = logging.getLogger(__name__)

MAX_BATCH_TEXTS = 32  # what TEI takes unless told otherwise
MAX_REQUESTS = 8
UNIT = 1e-5  # a length this near to 1 is a rounding of float32: the vector is left as it was sent


class RemoteEncoder(TextEncoder[Call]):
    """Qwen3-Embedding on a server (SGLang, vLLM, TEI, Infinity, Ollama, our own): unit vectors.

    The same methods as `Qwen3Encoder`, from any thread or event loop, without torch. Queries get
    their instruction here, because servers drop the fields that would carry it; vectors are cut
    to `dimensions` and normalised here, because servers refuse to, or forget. `model` is the name
    the server knows. The other options are `EncoderConfig`'s of texts and vectors; `max_length` is
    what the server reads of a text. `end_token="client"` is for a server that forgets to end texts
    with <|endoftext|>; any other would then read it twice.

    A call is sent in requests of at most `max_batch_texts`, or what the server is found to take,
    `max_requests` at a time; a call of one request never waits for a longer one's. See
    `ServerClient` for `base_url`, `api_key`, `timeout_s` and `retry_s`.

    A server's weights cannot be seen, so its contract has the revision "remote:MODEL". Where you
    know them to be those of a local encoder, give `revision=local.contract.revision`: each then
    opens the other's indexes. Raises ConfigError, MissingDependencyError; asks nothing yet.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        model: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retry_s: float = 60.0,
        max_batch_texts: int = MAX_BATCH_TEXTS,
        max_requests: int = MAX_REQUESTS,
        end_token: Literal["server", "client"] = "server",
        **options: Unpack[RemoteOptions],
    ) -> None:
        check_range("max_batch_texts", max_batch_texts, 1, 100_000)
        check_range("max_requests", max_requests, 1, 1000)
        check_choice("end_token", end_token, ("server", "client"))
        urls = ",".join(split_urls(base_url))
        self.config = config = EncoderConfig.from_options(model, base_url=urls, **options)
        self.max_length = config.max_length
        self._has_own_key = api_key is not None
        self._settings: dict[str, Any] = {
            "timeout_s": timeout_s,
            "retry_s": retry_s,
            "max_batch_texts": max_batch_texts,
            "max_requests": max_requests,
            "end_token": end_token,
        }
        self._open = partial(
            ServerClient,
            urls,
            model=model,
            api_key=api_key,
            api_key_env=config.api_key_env,
            timeout_s=timeout_s,
            retry_s=retry_s,
            max_connections=2 * max_requests,
        )
        self._suffix = END_TOKEN if end_token == "client" else ""
        self._limits = RequestLimits(max_batch_texts, config.max_length)
        self._lock = threading.Lock()
        self._num_texts = self._num_tokens = self._num_truncated = 0
        self._width: int | None = None  # of the server's vectors, once it is known
        self._channel = Channel(self._open(), max_requests)

    @classmethod
    def of(cls, config: EncoderConfig, **settings: Any) -> RemoteEncoder:
        """Return the encoder of a config with a `base_url`; `settings` are the constructor's."""
        options = {k: v for k, v in config.portable().items() if k not in {"model", "base_url"}}
        return cls(config.base_url or "", model=config.model, **settings, **options)

    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors:
        """Return what `encode_queries` returns, without blocking the event loop."""
        return await self._aresult(queries, "queries", self._prompt(instruction))

    async def aencode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return what `encode_documents` returns, without blocking the event loop."""
        return await self._aresult(documents, "documents")

    def count_tokens(self, document: str) -> int:
        """Return how many tokens the server read for a document, asking it."""
        # Most servers refuse a blank text: it is read behind a letter, a token of its own.
        letter = "" if document.strip() else "a"
        num_tokens = self._ask_one(letter + document).num_tokens
        if num_tokens is None:
            raise RemoteError(
                f"{self.config.base_url} does not say how many tokens it read "
                "(usage.prompt_tokens)",
                url=str(self.config.base_url),
                status=200,
            )
        return num_tokens - len(letter)

    def stats(self) -> EncoderStats:
        """Return the counts of texts, tokens, truncated texts, requests and retries so far."""
        client = self._channel.client
        with self._lock:
            counts = self._num_texts, self._num_tokens, self._num_truncated
        return EncoderStats(*counts, client.num_requests, client.num_retries)

    @property
    def model_dimensions(self) -> int:
        """The width of the server's vectors; the first access may ask it."""
        return self._width or self._note_width(self._ask_one("width"))

    @property
    def dimensions(self) -> int:
        """The width of the vectors; without the option of that name it is the server's."""
        return self.config.dimensions or self.model_dimensions

    @property
    def contract(self) -> EmbeddingContract:
        """The facts that make this encoder's vectors what they are, as far as they can be known.

        Without the option `dimensions` the first access may ask the server for its width.
        """
        return self._contract

    @cached_property
    def _contract(self) -> EmbeddingContract:
        config = self.config
        return EmbeddingContract(
            model=config.model,
            revision=config.revision or f"remote:{config.model}",
            lora=config.lora,
            dimensions=self.dimensions,
            instruction=config.instruction,
            max_length=self.max_length,
            on_too_long=config.on_too_long,
            dtype="unknown" if config.dtype == "auto" else config.dtype,
            quantization=config.quantization,
            package_version=version("qwen3-embedding-integrations"),
        )

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused."""
        return self._channel.is_closed

    def close(self) -> None:
        """Close the connections; what is under way fails with EngineClosedError."""
        self._channel.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._has_own_key:
            raise ConfigError(
                "a RemoteEncoder with an api_key is not pickled: the key would be written with it; "
                "give api_key_env, the environment variable that holds it"
            )
        return partial(RemoteEncoder.of, **self._settings), (self.config,)

    def __repr__(self) -> str:
        return f"RemoteEncoder({self.config.base_url!r}, model={self.config.model!r})"

    def _connected(self) -> Channel:
        if self._channel.is_of_parent and not self._channel.is_closed:
            self._channel = Channel(self._open(), self._settings["max_requests"])
        return self._channel

    def _ask_one(self, document: str) -> Answer:
        return self._connected().client.embed([document + self._suffix])

    def _submit(
        self,
        texts: Sequence[str],
        word: str,
        prompt: str = "",
        first_index: int = 0,
        future: Future[Vectors] | None = None,
    ) -> Call:
        """Return the call that encodes these texts, as its `future` where one is given."""
        config, channel, limits = self.config, self._connected(), self._limits
        rules = InputRules(config.max_length, config.on_too_long, config.on_empty)
        check_texts(texts, word, rules, first_index)
        strings = [prompt + text + self._suffix for text in texts]

        def ask_part(part: range) -> list[Answer]:
            some = strings[part.start : part.stop]
            return ask(channel.client, limits, some, word, first_index + part.start)

        def finish(answers: list[Answer]) -> Vectors:
            return self._vectors(answers, word, first_index)

        call = Call(limits.plan(strings), ask_part, finish, future)
        if not strings:
            call.future.set_result(np.empty((0, self.dimensions), np.float32))
        return channel.submit(call)

    def _result(self, job: Call, show_progress: bool | None = False) -> Vectors:
        num_texts = job.parts[-1].stop if job.parts else 0
        try:
            watch(job.future, lambda: job.num_done, num_texts, show_progress)
            return job.future.result()
        finally:
            job.future.cancel()  # Ctrl-C: what was not sent yet is not wanted any more

    def _cancel(self, job: Call) -> None:
        job.future.cancel()

    async def _aresult(self, texts: Sequence[str], word: str, prompt: str = "") -> Vectors:
        future = Future[Vectors]()
        try:
            await asyncio.to_thread(self._submit, texts, word, prompt, future=future)
            return await asyncio.wrap_future(future)
        finally:
            future.cancel()  # a caller who leaves takes back what was not sent yet

    def _note_width(self, answer: Answer) -> int:
        """Return the width of the server's vectors. Raises where it is not what it was."""
        url, dimensions = self.config.base_url, self.config.dimensions
        width = answer.vectors.shape[1]
        with self._lock:
            known = self._width = self._width or width
        if width != known:
            raise RemoteError(
                f"{url} answered with vectors of {width} dimensions, before of {known}; "
                "every server must serve the same model",
                url=str(url),
                status=200,
            )
        if dimensions is not None and dimensions > width:
            raise ConfigError(
                f"dimensions is {dimensions}, {url} makes {width}; choose a smaller number, or None"
            )
        return width

    def _vectors(self, answers: Sequence[Answer], word: str, first_index: int) -> Vectors:
        """Return the unit vectors of a call's answers, (N, dimensions) float32.

        Raises NonFiniteOutputError, RemoteError; InputError for a text that was cut, where that is
        an error.
        """
        (width,) = {self._note_width(answer) for answer in answers}
        vectors = np.concatenate([answer.vectors for answer in answers])
        vectors = np.ascontiguousarray(vectors[:, : self.config.dimensions or width])
        lengths = np.linalg.norm(vectors, axis=1)
        is_good = np.isfinite(lengths) & (lengths > 0)
        if not is_good.all():
            raise NonFiniteOutputError(
                f"{self.config.base_url} answered {word}[{first_index + int(np.argmin(is_good))}] "
                "with NaN, inf or zeros; serve the model in bfloat16 or float32: float16 is too "
                "narrow for some texts"
            )
        is_off = np.abs(lengths - 1) > UNIT
        vectors[is_off] /= lengths[is_off, None]
        self._count(answers, word, first_index)
        return vectors

    def _count(self, answers: Sequence[Answer], word: str, first_index: int) -> None:
        """Count a call, and tell of texts that the server has probably cut."""
        cut: list[int] = []
        index, max_length = first_index, self.max_length
        for answer in answers:
            if len(answer.vectors) == 1 and (answer.num_tokens or 0) >= max_length:
                cut.append(index)
            index += len(answer.vectors)
        with self._lock:
            self._num_texts += index - first_index
            self._num_tokens += sum(answer.num_tokens or 0 for answer in answers)
            self._num_truncated += len(cut)
        if not cut:
            return
        named = ", ".join(map(str, cut[:MAX_NAMED])) + (", …" if len(cut) > MAX_NAMED else "")
        said = f"{word} {named}: the server read max_length={max_length} tokens or more"
        if self.config.on_too_long == "error":
            raise InputError(f"{said}; shorten what it may have cut", index=cut[0])
        logger.warning("%s, and may have cut the rest", said)
