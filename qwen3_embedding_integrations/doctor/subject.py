"""What is examined: an encoder or a server, asked for vectors exactly as it makes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..contract import Encoder
from ..core.prompts import WEB_SEARCH
from ..encoder import Qwen3Encoder
from ..errors import NonFiniteOutputError, RemoteError

if TYPE_CHECKING:
    from ..remote import ServerClient

Vectors = npt.NDArray[np.float64]
Answer = tuple[Vectors, int | None]  # (N, W), and the tokens counted; None: not told

# Of several explanations one counts if it is at most this far off, by the right one's distance.
CLEARLY = 0.25
NAN_WORDS = re.compile(r"\bnan\b|\binf(inity)?\b|not finite|non-finite", re.IGNORECASE)


class Refusal(Exception):
    """The subject declined a request that it may decline: an option or a length it does not take.

    Not an error of this package's tree: it never leaves the doctor.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """An encoder or a server; both are asked as OpenAI's servers are.

    `ask` takes texts (documents, or whole query strings) or lists of token ids, and the fields
    that a request may have beside them: dimensions, or input_type and instruction. It raises
    Refusal.
    """

    name: str  # at the top of the diagnosis
    model: str  # by its own name for it
    ask: Callable[[list[Any], dict[str, Any]], Answer]
    is_server: bool
    instruction: str = WEB_SEARCH  # of queries, unless a call says otherwise
    dtype: str | None = None  # None here and below: unknown
    quantization: str | None = None
    max_tokens: int | None = None  # of a text
    width: int | None = None  # the model's own
    _known: dict[str, Answer] = field(init=False, default_factory=dict[str, Answer])

    def embed(self, inputs: Sequence[Any], **fields: Any) -> Vectors:
        """Return one vector per input, asked for in one request, (N, W)."""
        return self.ask(list(inputs), fields)[0]

    def embed_queries(self, queries: Sequence[str], instruction: str) -> Vectors:
        """Return one vector per query by the subject's own template, each asked for alone."""
        fields = {"input_type": "query", "instruction": instruction}
        return np.concatenate([self.embed([query], **fields) for query in queries])

    def alone(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, each asked for alone and only once, (N, W)."""
        vectors = [self._answer(text)[0] for text in texts]
        width = max(one.shape[1] for one in vectors)
        # A server that answers NaN by an error has no width then.
        rows = [v if v.shape[1] == width else np.full((1, width), np.nan) for v in vectors]
        return np.concatenate(rows)

    def counts(self, texts: Sequence[str]) -> list[int | None]:
        """Return how many tokens were counted of each text, asked for alone."""
        return [self._answer(text)[1] for text in texts]

    def _answer(self, text: str) -> Answer:
        if text not in self._known:
            try:
                self._known[text] = self.ask([text], {})
            except Refusal as refusal:
                # Who answers no text at all cannot be examined.
                if not self._known and refusal.__cause__ is not None:
                    raise refusal.__cause__ from None
                raise
        return self._known[text]


def of_encoder(encoder: Encoder) -> Subject:
    """Return an encoder of this package, or any object with its methods, to be examined."""
    contract = encoder.contract

    def ask(inputs: list[Any], fields: dict[str, Any]) -> Answer:
        if not isinstance(inputs[0], str):
            raise Refusal("an encoder takes texts")
        try:
            if "instruction" in fields:
                vectors = encoder.encode_queries(inputs, instruction=fields["instruction"])
            else:
                asked = _resized(encoder, fields) if "dimensions" in fields else encoder
                vectors = asked.encode_documents(inputs)
        except NonFiniteOutputError:
            return np.full((len(inputs), encoder.dimensions), np.nan), None
        return vectors.astype(np.float64), None

    return Subject(
        name=f"{contract.model} ({encoder!r})",
        model=contract.model,
        ask=ask,
        is_server=False,
        instruction=contract.instruction or WEB_SEARCH,
        dtype=contract.dtype,
        quantization=contract.quantization,
        max_tokens=contract.max_length,
    )


def _resized(encoder: Encoder, fields: dict[str, Any]) -> Encoder:
    """Return the encoder with other dimensions, over the same weights."""
    if not isinstance(encoder, Qwen3Encoder):
        raise Refusal("an encoder has one width")
    loaded = encoder._loaded  # pyright: ignore[reportPrivateUsage]
    return Qwen3Encoder.over(loaded, replace(encoder.config, **fields))


def of_server(client: ServerClient, *, end: str = "") -> Subject:
    """Return an OpenAI-compatible server to be examined.

    It gets whole strings, as its clients send them; `end` is what a client writes after each text:
    the end token, where the server forgets it.
    """

    def ask(inputs: list[Any], fields: dict[str, Any]) -> Answer:
        inputs = [one + end if isinstance(one, str) else one for one in inputs]
        try:
            answer = client.embed(inputs, fields=fields)
        except RemoteError as error:
            # Go's and Rust's JSON have no NaN: such servers answer it with an error that says so.
            if (error.status or 0) >= 500 and NAN_WORDS.search(str(error)):
                return np.full((len(inputs), 1), np.nan), None
            if error.status in {400, 413, 415, 422, 500, 501}:
                raise Refusal(str(error)) from error
            raise
        return answer.vectors.astype(np.float64), answer.num_tokens

    name = f"{client.model} at {client.base_urls[0]}"
    return Subject(name=name, model=client.model, ask=ask, is_server=True)


def unit(vectors: Vectors) -> Vectors:
    """Return the vectors at length one; a zero vector stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def distances(left: Vectors, right: Vectors) -> Vectors:
    """Return 1 - cosine of each pair of rows, (N,)."""
    return 0.5 * np.square(unit(left) - unit(right)).sum(axis=1)
