"""Damaged bodies for the server's routes, each certainly not a request, from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Body(NamedTuple):
    """A body and the route it is sent to."""

    path: str
    content: bytes


SOUND: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "model": "tiny",
        "input": ["Gravity attracts two bodies.", "重力"],
        "dimensions": 64,
        "encoding_format": "float",
        "input_type": "query",
        "instruction": "Find the answer",
        "truncate": "END",
        "user": "u",
    },
    "/v1/rerank": {
        "model": "reranker",
        "query": "capital of France",
        "documents": ["Paris", {"text": "Rome"}],
        "top_n": 1,
        "return_documents": True,
        "instruction": "Find the answer",
        "truncate": "NONE",
    },
}
REQUIRED = {"/v1/embeddings": ("model", "input"), "/v1/rerank": ("model", "query", "documents")}
NEVER = ({}, {"a": 1}, [[["a"]]], [None], 1.5, -7, [{}], 10**400, [[1.5]], {"text": 1}, [["a", 1]])
ODD = ("\x00", "\ufeff", "\u202e", "${jndi:x}", "' OR 1=1 --", "../../etc/passwd", "__proto__")


def malformed_bodies(rng: random.Random, number: int) -> Iterator[Body]:
    """Yield so many bodies, none of which the server may answer with a 200."""
    damages: list[Callable[[random.Random, str, dict[str, Any]], bytes]] = [
        _cut_short,
        _wrong_type,
        _missing,
        _unknown,
        _not_an_object,
        _bad_text,
        _nested,
        _out_of_range,
        _noise,
    ]
    for _ in range(number):
        path = rng.choice([*SOUND])
        yield Body(path, rng.choice(damages)(rng, path, dict(SOUND[path])))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _cut_short(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    content = _json(sound)
    cut = content[: rng.randrange(len(content))]
    return rng.choice([cut, content + rng.choice([b"}", b"{}", b"\x00", b",", content])])


def _wrong_type(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    sound[rng.choice([*sound])] = rng.choice(NEVER)
    return _json(sound)


def _missing(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    field = rng.choice(REQUIRED[path])
    if rng.random() < 0.5:
        del sound[field]
    else:
        sound[field] = None
    return _json(sound)


def _unknown(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    name = "x" + rng.choice(ODD) + str(rng.random()) * rng.choice([1, 500])
    return _json(sound | {name: rng.choice(NEVER)})


def _not_an_object(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    return _json(rng.choice([[], [sound], "text", 1, None, True, 1e308, [[]] * 50]))


def _bad_text(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    field = {"/v1/embeddings": "input", "/v1/rerank": "query"}[path]
    sound[field] = "MARK"
    bad = [
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\n",
        b"\\x41",
        b"   ",
        b"",
    ]
    return _json(sound).replace(b"MARK", rng.choice(bad))


def _nested(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    depth = rng.choice([300, 5_000, 50_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nest = opening * depth + b"1" + closing * rng.choice([0, depth])
    field = rng.choice(REQUIRED[path])
    sound[field] = "MARK"
    return _json(sound).replace(b'"MARK"', nest)


def _out_of_range(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    wrong: list[dict[str, Any]] = [
        {"dimensions": rng.choice([0, -1, 1, 31, 257, 2**63, 10**30])},
        {"encoding_format": "float64"},
        {"input": []},
        {"input": ["a"] * 2049},
        {"input": [rng.choice([-1, 2**31, 2**70])], "input_type": None, "instruction": None},
        {"input": [[1, 2], []], "input_type": None, "instruction": None},
        {"input_type": "image"},
        {"instruction": "  "},
        {"truncate": "MIDDLE"},
        {"model": "no such model" + rng.choice(ODD)},
    ]
    if path == "/v1/rerank":
        wrong = [
            {"top_n": rng.choice([0, -1, -(2**70)])},
            {"documents": []},
            {"documents": ["a"] * 2049},
            {"documents": [{"text": "a", "title": "b"}]},
            {"query": ""},
            {"truncate": "MIDDLE"},
            {"model": "no such model" + rng.choice(ODD)},
        ]
    return _json(sound | rng.choice(wrong))


def _noise(rng: random.Random, path: str, sound: dict[str, Any]) -> bytes:
    # The first byte begins no JSON value.
    return b"\x80" + rng.randbytes(rng.choice([0, 1, 10, 1000, 50_000]))
