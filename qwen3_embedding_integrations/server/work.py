"""A checked request to an answer: which model, which role, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ..core.prompts import WEB_SEARCH, query_prompt
from ..encoder import Encoded, Qwen3Encoder
from ..errors import ConfigError, TextTooLongError
from ..reranker import Qwen3Reranker, Scored
from . import shapes
from .answers import cut, embedding_answer, rerank_answer
from .config import ServerConfig
from .limits import read_body
from .metrics import Metrics
from .models import Models
from .observe import NOTE
from .problems import ClientGoneError, Refusal, invalid_body

R = TypeVar("R", bound=shapes.Request)
T = TypeVar("T")
Word = Literal["queries", "documents", "token_ids"]
OnTooLong = Literal["truncate", "error"]
Note = dict[str, Any]  # what is logged of a request


class Desk:
    """Takes requests, each to the model it names."""

    def __init__(self, models: Models, config: ServerConfig, metrics: Metrics) -> None:
        self._models = models
        self._config = config
        self._metrics = metrics
        self._places = asyncio.Semaphore(config.max_requests)

    async def answer(
        self,
        request: Request,
        shape: type[R],
        work: Callable[[R, Note], Coroutine[Any, Any, Response]],
    ) -> Response:
        """Return what `work` makes of a request's body. Raises what a client is told as Refusal."""
        if self._places.locked():
            most = self._config.max_requests
            raise Refusal(
                429,
                f"{most} requests are under way already; try again in a moment",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        async with self._places:
            body = await read_body(request, self._config)
            try:
                asked = shape.model_validate_json(body)
            except ValidationError as error:
                raise invalid_body(error) from None
            return await _unless_gone(request, work(asked, request.scope[NOTE]))

    async def embed(self, asked: shapes.EmbeddingRequest, note: Note) -> Response:
        """Answer POST /v1/embeddings."""
        slot = self._models.find(asked.model, "embedding")
        texts, word = _texts_of(asked)
        self._check_number(len(texts), "input")
        async with slot.use() as model:
            encoded = await _encode(model, texts, word, asked, self._config.max_tokens)
        vectors = cut(encoded.vectors, asked.dimensions)
        self._count(note, slot.served.name, word, len(texts), encoded)
        return embedding_answer(
            vectors,
            is_base64=asked.encoding_format == "base64",
            model=asked.model,
            num_tokens=encoded.num_tokens,
        )

    async def rerank(self, asked: shapes.RerankRequest, note: Note) -> Response:
        """Answer POST /v1/rerank."""
        slot = self._models.find(asked.model, "reranking")
        documents = [one if isinstance(one, str) else one.text for one in asked.documents]
        self._check_number(len(documents), "documents")
        async with slot.use() as model:
            assert isinstance(model, Qwen3Reranker), f"{slot.served.name} loaded {model!r}"
            scored = await model.ascore_counted(
                asked.query,
                documents,
                instruction=asked.instruction,
                on_too_long=_on_too_long(asked.truncate),
                max_tokens=self._config.max_tokens,
            )
        self._count(note, slot.served.name, "pairs", len(documents), scored)
        return rerank_answer(
            scored.scores,
            documents=documents if asked.return_documents else None,
            top_n=asked.top_n,
            model=asked.model,
            num_tokens=scored.num_tokens,
        )

    def _check_number(self, number: int, field: str) -> None:
        most = self._config.max_texts
        if not 1 <= number <= most:
            message = f"{field} holds {number} texts; give 1 to {most} in a request"
            raise Refusal(400, message, param=field)

    def _count(
        self, note: Note, model: str, role: str, num_texts: int, read: Encoded | Scored
    ) -> None:
        note |= {"model": model, "role": role, "texts": num_texts}
        note |= {"tokens": read.num_tokens, "truncated": read.num_truncated}
        metrics = self._metrics
        metrics.texts.labels(model, role).inc(num_texts)
        metrics.tokens.labels(model, role).inc(read.num_tokens)
        metrics.truncated.labels(model, role).inc(read.num_truncated)


def _texts_of(asked: shapes.EmbeddingRequest) -> tuple[list[Any], Word]:
    """Return what is to be encoded, and as what. Raises Refusal for a mix that means nothing."""
    is_query = asked.input_type in shapes.QUERY_WORDS
    if asked.instruction is not None and not is_query:
        raise Refusal(
            400,
            'instruction belongs to queries; send input_type="query", or leave it out',
            param="instruction",
        )
    texts = asked.input if isinstance(asked.input, list) else [asked.input]
    first = texts[0] if texts else ""
    if isinstance(first, str):
        return texts, "queries" if is_query else "documents"
    if is_query:
        raise Refusal(
            400,
            "token ids are read as they are, and a query needs its instruction before it; send "
            "the query as text",
            param="input",
        )
    return [texts] if isinstance(first, int) else texts, "token_ids"


def _on_too_long(truncate: shapes.Truncate | None) -> OnTooLong | None:
    if truncate is None:
        return None
    return "truncate" if truncate in {"END", True} else "error"


async def _encode(
    model: Any, texts: list[Any], word: Word, asked: shapes.EmbeddingRequest, max_tokens: int
) -> Encoded:
    """Return the vectors of any Encoder: counted as they are made, or beforehand."""
    on_too_long = _on_too_long(asked.truncate)
    if isinstance(model, Qwen3Encoder):
        return await model.aencode_counted(
            texts,
            word,
            instruction=asked.instruction,
            on_too_long=on_too_long,
            max_tokens=max_tokens,
        )
    config = getattr(model, "config", None)
    if on_too_long == "truncate" and getattr(config, "on_too_long", None) != "truncate":
        raise ConfigError("truncate: this model cuts as its encoder was made to; leave it out")
    if word == "token_ids":
        encode: Callable[[Any], Awaitable[Any]] | None = getattr(model, "aencode_token_ids", None)
        if encode is None:
            raise ConfigError("this model takes texts only, no token ids")
        return Encoded(await encode(texts), sum(map(len, texts)), 0)
    prompt = ""
    if word == "queries":
        prompt = query_prompt(asked.instruction or getattr(config, "instruction", WEB_SEARCH))
    count: Callable[[str], int] | None = getattr(model, "count_tokens", None)
    lengths = [0] * len(texts)
    if count is not None:
        lengths = await asyncio.to_thread(lambda: [count(prompt + text) for text in texts])
    most = getattr(model, "max_length", None)
    longest = max(range(len(texts)), key=lengths.__getitem__)
    if on_too_long == "error" and most is not None and lengths[longest] > most:
        raise TextTooLongError(index=longest, num_tokens=lengths[longest], max_length=most)
    if sum(lengths) > max_tokens:
        raise Refusal(400, f"input has {sum(lengths)} tokens, {max_tokens} are allowed")
    if word == "queries":
        vectors = await model.aencode_queries(texts, instruction=asked.instruction)
    else:
        vectors = await model.aencode_documents(texts)
    return Encoded(vectors, sum(lengths), 0)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; cancel it, and with it its place, when the client hangs up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # the body is read: what comes is the end
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        leaving.cancel()
        working.cancel()
