"""What is examined: an encoder or a server, asked for vectors exactly as it makes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..contract import Encoder
from ..core.prompts import WEB_SEARCH
from ..encoder import Qwen3Encoder
from ..errors import NonFiniteOutputError, Qwen3EmbeddingError, RemoteError

if TYPE_CHECKING:
    from ..remote import ServerClient

# 1 - cosine allowed by the arithmetic, as published: 0.99999 in float32, 0.9995 in the others.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-4, "float16": 5e-4}

Vectors = npt.NDArray[np.float64]
NAN_WORDS = re.compile(r"\bnan\b|\binf(inity)?\b|not finite|non-finite", re.IGNORECASE)


class Refusal(Exception):
    """The subject declined a request that it may decline: an option or a length it does not take.

    Not an error of this package's tree: it never leaves the doctor.
    """


class Subject(Protocol):
    """Texts to raw vectors; each method may raise Refusal."""

    @property
    def name(self) -> str:
        """What stands at the top of the diagnosis."""
        ...

    @property
    def model(self) -> str:
        """The model, by the subject's own name for it."""
        ...

    @property
    def instruction(self) -> str:
        """What queries are for, unless a call says otherwise."""
        ...

    @property
    def dtype(self) -> str | None:
        """What it computes in; None: unknown."""
        ...

    @property
    def quantization(self) -> str | None:
        """What its weights are rounded to; None: not, or unknown."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """What it says it reads of a text at most; None: unknown."""
        ...

    @property
    def num_tokens(self) -> int | None:
        """How many tokens it counted at the last answer; None: it does not tell."""
        ...

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> Vectors:
        """Return one vector per text (a document, or a whole query string), (N, W)."""
        ...

    def embed_queries(self, queries: Sequence[str], instruction: str) -> Vectors:
        """Return one vector per query, (N, W), by the subject's own template."""
        ...

    def embed_ids(self, token_ids: Sequence[int]) -> Vectors:
        """Return the vector of these token ids, (1, W)."""
        ...


class EncoderSubject:
    """An encoder of this package, or any object with its methods."""

    num_tokens = None

    def __init__(self, encoder: Encoder) -> None:
        contract = encoder.contract
        self.name = f"{contract.model} ({encoder!r})"
        self.model = contract.model
        self.instruction = contract.instruction or WEB_SEARCH
        self.dtype = contract.dtype if contract.dtype in TOLERANCES else None
        self.quantization = contract.quantization
        self.max_tokens: int | None = contract.max_length
        self._encoder = encoder

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> Vectors:
        encoder = self._encoder
        if dimensions is not None:
            if not isinstance(encoder, Qwen3Encoder) or dimensions > encoder.model_dimensions:
                raise Refusal("an encoder has one width")
            config = replace(encoder.config, dimensions=dimensions)
            # The same weights: another encoder would load them again.
            loaded = encoder._loaded  # pyright: ignore[reportPrivateUsage]
            encoder = Qwen3Encoder.over(loaded, config)
        try:
            return encoder.encode_documents(list(texts)).astype(np.float64)
        except NonFiniteOutputError:
            return np.full((len(texts), self._encoder.dimensions), np.nan)

    def embed_queries(self, queries: Sequence[str], instruction: str) -> Vectors:
        try:
            vectors = self._encoder.encode_queries(list(queries), instruction=instruction)
        except NonFiniteOutputError:
            return np.full((len(queries), self._encoder.dimensions), np.nan)
        return vectors.astype(np.float64)

    def embed_ids(self, token_ids: Sequence[int]) -> Vectors:
        raise Refusal("an encoder takes texts")


class ServerSubject:
    """An OpenAI-compatible server; it gets whole strings, as its clients send them.

    `end` is what the client writes after each text: the end token, where the server forgets it.
    """

    dtype = quantization = max_tokens = None
    instruction = WEB_SEARCH

    def __init__(self, client: ServerClient, *, end: str = "") -> None:
        self.name = f"{client.model} at {client.base_urls[0]}"
        self.model = client.model
        self.num_tokens: int | None = None
        self._client = client
        self._end = end

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> Vectors:
        texts = [text + self._end for text in texts]
        return self._ask(texts, {} if dimensions is None else {"dimensions": dimensions})

    def embed_queries(self, queries: Sequence[str], instruction: str) -> Vectors:
        queries = [query + self._end for query in queries]
        return self._ask(queries, {"input_type": "query", "instruction": instruction})

    def embed_ids(self, token_ids: Sequence[int]) -> Vectors:
        return self._ask([list(token_ids)], {})

    def _ask(self, inputs: list[Any], fields: dict[str, Any]) -> Vectors:
        try:
            answer = self._client.embed(inputs, fields=fields)
        except RemoteError as error:
            # Go's and Rust's JSON have no NaN: such servers answer it with an error that says so.
            if (error.status or 0) >= 500 and NAN_WORDS.search(str(error)):
                return np.full((len(inputs), 1), np.nan)
            if error.status in {400, 413, 415, 422, 500, 501}:
                raise Refusal(str(error)) from error
            raise
        self.num_tokens = answer.num_tokens
        return answer.vectors.astype(np.float64)


class Asked(NamedTuple):
    """Vectors by text, and how many tokens the server counted for each."""

    vectors: Vectors  # (N, W)
    num_tokens: tuple[int | None, ...]


class Interview:
    """Asks a subject, each text alone and only once.

    Raises Refusal; of the very first text the error behind it: whoever answers no text at all
    cannot be examined.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._known: dict[str, tuple[Vectors, int | None]] = {}

    def alone(self, texts: Sequence[str]) -> Asked:
        """Return each text's vector, asked for in a request of its own."""
        for text in texts:
            if text not in self._known:
                vectors = self._embed(text)
                self._known[text] = vectors, self.subject.num_tokens
        answers = [self._known[text] for text in texts]
        width = max(vectors.shape[1] for vectors, _ in answers)
        # A server that answers NaN by an error has no width then.
        rows = [v if v.shape[1] == width else np.full((1, width), np.nan) for v, _ in answers]
        return Asked(np.concatenate(rows), tuple(count for _, count in answers))

    def _embed(self, text: str) -> Vectors:
        try:
            return self.subject.embed([text])
        except Refusal as refusal:
            if self._known:
                raise
            cause = refusal.__cause__
            if isinstance(cause, Qwen3EmbeddingError):
                raise cause from refusal
            raise


def unit(vectors: Vectors) -> Vectors:
    """Return the vectors at length one; a zero vector stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def distances(left: Vectors, right: Vectors) -> npt.NDArray[np.float64]:
    """Return 1 - cosine of each pair of rows, (N,)."""
    return 0.5 * np.square(unit(left) - unit(right)).sum(axis=1)
