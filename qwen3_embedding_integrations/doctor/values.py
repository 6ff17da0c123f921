"""A backend's vectors beside those that the weights make, rightly and with each fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..core.tokenizer import Tokenizer
from .faults import Check, Fault
from .reference import TokenizedText, hidden_states
from .subject import TOLERANCES, Interview, Vectors, distances
from .texts import DOCUMENTS, TEXT_READINGS, query_strings

IM_END = "<|im_end|>"
# What int8 comes to, with room: 0.9975 by ours, 0.9956 by ONNX Runtime (README, Measured).
QUANTIZED = 2e-2
CLEARLY = 0.25  # the nearest explanation's distance, by that of the right answer

Pool = Callable[[torch.Tensor], torch.Tensor]  # (L, H) -> (H,)


class Explanation(NamedTuple):
    """What the vectors would be if this were so."""

    fault: Fault | None  # None: nothing is wrong
    detail: str
    vectors: Vectors  # (N, H)


class _Recipe(NamedTuple):
    fault: Fault | None
    detail: str
    read: Callable[[str], TokenizedText]
    pool: Pool


def check_values(
    interview: Interview, folder: Path, *, dtype: str | None, quantization: str | None
) -> Check:
    """Whether vectors are those of the weights in `folder`, else what explains them best."""
    texts = [*DOCUMENTS, *query_strings()[:2]]
    vectors = interview.alone(texts).vectors
    explanations = explain(folder, texts)
    name, width = "values of the weights", explanations[0].vectors.shape[1]
    if vectors.shape[1] > width:
        detail = f"vectors have {vectors.shape[1]} dimensions, the weights make {width}"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.OTHER_WEIGHTS)
    offs = [distances(vectors, one.vectors[:, : vectors.shape[1]]) for one in explanations]
    best = min(range(len(offs)), key=lambda i: float(offs[i].mean()))
    right, nearest = offs[0], explanations[best]
    measured = f"1 - cosine at most {right.max():.1e}"
    if best == 0:
        return _judge_right(name, float(right.max()), measured, dtype, quantization)
    if offs[best].mean() <= CLEARLY * right.mean() and offs[best].max() <= QUANTIZED:
        detail = f"{nearest.detail} ({measured}, with this fault {offs[best].max():.1e})"
        return Check(name=name, verdict="wrong", detail=detail, fault=nearest.fault)
    detail = f"no known fault explains them ({measured}; nearest: {nearest.detail})"
    return Check(name=name, verdict="wrong", detail=detail, fault=Fault.OTHER_WEIGHTS)


def _judge_right(
    name: str, off: float, measured: str, dtype: str | None, quantization: str | None
) -> Check:
    """Return the check of vectors that are nearer to the right ones than to any fault's."""
    # Of a server the dtype is unknown: the coarsest of the usual ones may be it.
    tolerance = QUANTIZED if quantization else TOLERANCES.get(dtype or "", TOLERANCES["bfloat16"])
    if off <= tolerance:
        return Check(name=name, verdict="right", detail=measured)
    if off > QUANTIZED:
        detail = f"{measured}: not these weights"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.OTHER_WEIGHTS)
    if dtype is None:
        detail = f"{measured}: as far off as quantised weights, or as a fine-tune of these"
        return Check(name=name, verdict="note", detail=detail)
    detail = f"{measured}, {tolerance:.0e} allowed in {dtype}"
    return Check(name=name, verdict="wrong", detail=detail, fault=Fault.INEXACT)


def explain(folder: Path, texts: Sequence[str]) -> list[Explanation]:
    """Return what the weights make of the texts, rightly (first) and with each fault."""
    recipes = _recipes(Tokenizer(folder))
    readings = {recipe.read(text): 0 for recipe in recipes for text in texts}
    hidden = dict(zip(readings, hidden_states(folder, list(readings)), strict=True))
    return [
        Explanation(
            recipe.fault,
            recipe.detail,
            torch.stack([recipe.pool(hidden[recipe.read(text)]) for text in texts])
            .numpy()
            .astype(np.float64),
        )
        for recipe in recipes
    ]


def _recipes(tokenizer: Tokenizer) -> list[_Recipe]:
    """Return the right way first, then each fault's."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(int(i) for i in tokenizer.encode([text])[0])

    end = tokenizer.end_id
    recipes = [
        _Recipe(None, "", lambda text: TokenizedText(ids(text)), _last),
        _Recipe(
            Fault.END_MISSING,
            "the text's own last token is pooled",
            lambda text: TokenizedText(ids(text)[:-1] or (end,)),
            _last,
        ),
        _Recipe(
            Fault.END_DOUBLED,
            "a second <|endoftext|> is pooled",
            lambda text: TokenizedText((*ids(text), end)),
            _last,
        ),
        *_pooled(ids),
        _Recipe(
            Fault.NOT_CAUSAL,
            "tokens see those after them",
            lambda text: TokenizedText(ids(text), is_causal=False),
            _last,
        ),
    ]
    if len(other := ids(IM_END)) == 2:  # else this tokenizer has no such token
        recipes += [
            _Recipe(
                Fault.END_WRONG,
                f"{IM_END} in place of <|endoftext|>",
                lambda text: TokenizedText((*ids(text)[:-1], other[0])),
                _last,
            ),
            _Recipe(
                Fault.END_WRONG,
                f"{IM_END} after <|endoftext|>",
                lambda text: TokenizedText((*ids(text), other[0])),
                _last,
            ),
        ]
    return recipes + _misread(ids)


def _pooled(ids: Callable[[str], tuple[int, ...]]) -> list[_Recipe]:
    def read(text: str) -> TokenizedText:
        return TokenizedText(ids(text))

    return [
        _Recipe(Fault.MEAN_POOLING, "the mean of all tokens", read, _mean),
        _Recipe(Fault.MEAN_POOLING, "the mean of all but the end token", read, _mean_before_end),
        _Recipe(Fault.FIRST_TOKEN_POOLING, "the first token is pooled", read, _first),
    ]


def _misread(ids: Callable[[str], tuple[int, ...]]) -> list[_Recipe]:
    def rewritten(rewrite: Callable[[str], str]) -> Callable[[str], TokenizedText]:
        return lambda text: TokenizedText(ids(rewrite(text)))

    rewritings: dict[str, Callable[[str], str]] = {
        'a space after "Query:"': lambda text: text.replace("\nQuery:", "\nQuery: "),
        "newlines are replaced by spaces": lambda text: text.replace("\n", " "),
        "a query's prompt is removed": lambda text: text.rpartition("\nQuery:")[2],
    }
    for reading in TEXT_READINGS:
        rewritings[reading.detail] = lambda text, reading=reading: reading.of(text, "")
    return [
        _Recipe(Fault.WRONG_TEMPLATE, detail, rewritten(rewrite), _last)
        for detail, rewrite in rewritings.items()
    ]


def _last(hidden: torch.Tensor) -> torch.Tensor:
    return hidden[-1]


def _first(hidden: torch.Tensor) -> torch.Tensor:
    return hidden[0]


def _mean(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.mean(dim=0)


def _mean_before_end(hidden: torch.Tensor) -> torch.Tensor:
    return hidden[:-1].mean(dim=0) if len(hidden) > 1 else hidden[0]
