"""Vectors and scores as the bytes of an answer, without a Python float for each number."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import numpy as np
import orjson
from starlette.responses import Response, StreamingResponse

from ..contract import Vectors
from ..core.config import MIN_DIMENSIONS, check_range

JSON = "application/json"
BLOCK_ROWS = 64  # written at a time: others are answered in between


def cut(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Return the vectors at fewer dimensions, (N, dimensions), of unit length again.

    Raises ConfigError for a width the model does not have.
    """
    width = vectors.shape[1]
    if dimensions is None or dimensions == width:
        return vectors
    check_range("dimensions", dimensions, MIN_DIMENSIONS, width)
    vectors = vectors[:, :dimensions]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embedding_answer(vectors: Vectors, *, is_base64: bool, model: str, num_tokens: int) -> Response:
    """Return OpenAI's answer with one vector for each row of (N, W)."""
    vectors = np.ascontiguousarray(vectors, "<f4")
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    tail = b"]," + orjson.dumps({"model": model, "usage": usage})[1:]
    head = b'{"object":"list","data":['
    if len(vectors) <= BLOCK_ROWS:
        return Response(head + _rows(vectors, 0, is_base64) + tail, media_type=JSON)

    async def blocks() -> AsyncIterator[bytes]:
        yield head
        for start in range(0, len(vectors), BLOCK_ROWS):
            rows = _rows(vectors[start : start + BLOCK_ROWS], start, is_base64)
            yield b"," + rows if start else rows
            await asyncio.sleep(0)
        yield tail

    return StreamingResponse(blocks(), media_type=JSON)


def _rows(vectors: Vectors, first: int, is_base64: bool) -> bytes:
    if is_base64:
        values = (b'"' + base64.b64encode(row) + b'"' for row in vectors)
    else:
        values = (orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in vectors)
    return b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, value)
        for index, value in enumerate(values, first)
    )


def rerank_answer(
    scores: Vectors,
    *,
    documents: Sequence[str] | None,
    top_n: int | None,
    model: str,
    num_tokens: int,
) -> Response:
    """Return Cohere's answer, best first, the fields of Jina's in it; (N,) scores.

    `documents` are returned beside their scores where they are given.
    """
    best_first: list[int] = np.argsort(-scores, kind="stable")[:top_n].tolist()
    results = [
        {"index": index, "relevance_score": float(scores[index])}
        | ({"document": {"text": documents[index]}} if documents is not None else {})
        for index in best_first
    ]
    answer = {
        "id": str(uuid4()),
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "meta": {"tokens": {"input_tokens": num_tokens}},
    }
    return Response(orjson.dumps(answer), media_type=JSON)
