"""The values that are published, or recorded by us, for a model, beside a backend's."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from ..core.prompts import END_TOKEN
from .report import Check, Fault, note, right, skipped, wrong
from .subject import CLEARLY, Refusal, Subject, Vectors, distances, unit
from .texts import DOCUMENTS
from .weights import END_FAULTS, RECIPES

Embed = Callable[[Sequence[str]], Vectors]

NAMES = re.compile(r"(?:.*/)?qwen3-embedding[-_:](0\.6b|4b|8b)(?:[-_:.](?:gguf|onnx|latest))?")
FILES = ("qwen3-embedding-0.6b", "qwen3-embedding-4b", "qwen3-embedding-8b", "tiny")
# Largest difference of a cosine and of a unit vector's number, and 1 - cosine of a whole vector:
# 1e-4, 1e-5, 1e-5 in float32, 6e-3, 4e-3, 5e-4 in bfloat16 and float16 are published tolerances.
LIMITS = {
    "float32": {"cosines": 1e-4, "numbers": 1e-5, "1 - cosine": 1e-5},
    "half": {"cosines": 6e-3, "numbers": 4e-3, "1 - cosine": 5e-4},
    "quantised": {"cosines": 2e-2, "numbers": 1e-2, "1 - cosine": 1e-2},
}
PRECISIONS = list(LIMITS)
MOST_BY_DOUBLING = 0.1  # 1 - cosine: 0.002 to 0.023 in the 0.6B (published), 0.035 in tiny
IM_END_AFTER = 2  # <|im_end|>'s id less <|endoftext|>'s, in the official tokenizers and tiny's


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A model's values; `sources` says where each comes from."""

    model: str
    revision: str | None
    content_hash: str | None  # the contract's `revision` of the official files
    width: int
    sources: dict[str, str]
    texts: dict[str, str]
    pairs: list[tuple[str, str, float]]  # two names in `texts`, their cosine
    vectors: list[dict[str, Any]]  # text, values, atol, source; most: token_ids


def find_golden(model: str, content_hash: str | None = None) -> Golden | None:
    """Return the values of a model by its name or by its files' hash, None if there are none."""
    known = _read_all()
    for golden in known.values():
        if content_hash is not None and golden.content_hash == content_hash:
            return golden
    match = NAMES.fullmatch(model.lower())
    return known.get(f"qwen3-embedding-{match[1]}" if match else model)


@cache
def _read_all() -> dict[str, Golden]:
    folder = files("qwen3_embedding_integrations") / "golden"
    texts = {name: (folder / f"{name}.json").read_text(encoding="utf-8") for name in FILES}
    return {name: Golden(**json.loads(text)) for name, text in texts.items()}


def compare(
    golden: Golden, embed: Embed, *, is_asked: Callable[[str], bool] = lambda _: True
) -> dict[str, float]:
    """Return how far `embed`'s vectors are from the values at most, by the kinds of LIMITS.

    Vectors are no wider than the values; of narrower ones only whole values are compared. Texts
    that `is_asked` denies are left out. A kind of which nothing can be compared is not there.
    """
    off: defaultdict[str, list[float]] = defaultdict(list)
    for *names, cosine in golden.pairs:
        texts = [golden.texts[name] for name in names]
        if all(map(is_asked, texts)) and (pair := unit(embed(texts))).shape[1] == golden.width:
            off["cosines"].append(abs(float(pair[0] @ pair[1]) - cosine))
    for one in golden.vectors:
        if not is_asked(one["text"]):
            continue
        values, vector = np.array(one["values"]), embed([one["text"]])
        if len(values) == golden.width:
            off["1 - cosine"].append(distances(vector, values[None, : vector.shape[1]])[0])
        elif vector.shape[1] == golden.width:
            difference = np.abs(unit(vector)[0, : len(values)] - values).max()
            off["numbers"].append(0.0 if difference <= one["atol"] else difference)
    # numpy's max: a NaN is no small deviation.
    return {kind: float(np.max(values)) for kind, values in off.items()}


def precision_of(off: dict[str, float]) -> str | None:
    """Return the finest arithmetic that explains deviations, None if none does."""
    for precision, limits in LIMITS.items():
        if off and all(value <= limits[kind] for kind, value in off.items()):
            return precision
    return None


def check_golden(subject: Subject, golden: Golden, *, is_of_weights: bool) -> Check:
    """Whether answers are the model's published values; else what the pattern points to.

    `is_of_weights` says that they are those of the weights at hand.
    """
    width = subject.alone(DOCUMENTS[:1]).shape[1]
    if width > golden.width:
        detail = f"vectors have {width} dimensions, {golden.model} makes {golden.width}"
        return wrong(Fault.OTHER_WEIGHTS, detail)
    off = compare(golden, subject.alone)
    if not off:
        return skipped(f"nothing is known of {golden.model} at this width")
    is_exact = subject.dtype == "float32"
    allowed = "quantised" if subject.quantization else "float32" if is_exact else "half"
    by_kind = ", ".join(f"{kind} {value:.1e}" for kind, value in off.items())
    measured, precision = f"{golden.model}, off at most: {by_kind}", precision_of(off)
    if precision in PRECISIONS[: PRECISIONS.index(allowed) + 1]:
        return right(measured)
    if is_of_weights and precision is None:
        detail = f"the weights at hand are not those of {golden.model}"
        return wrong(Fault.OTHER_WEIGHTS, detail)
    guesses = (_name_by_ids, _name_by_rewriting, _name_by_count)
    found = next((one for guess in guesses if (one := guess(subject, golden))), None)
    if found is None and precision is not None:
        return note(f"{measured}: as far off as quantised weights")
    if found is None:
        detail = "or a fault that shows only beside the weights: give --reference"
        others = wrong(Fault.OTHER_WEIGHTS, detail, is_certain=False)
        found = _name_by_mean(subject, golden) or others
    return replace(found, detail=f"{found.detail} ({measured})")


def _is_query(text: str) -> bool:
    return text.startswith("Instruct: ")


# A fault is there if answers are right once this is done to the texts, or for these texts alone.
REWRITINGS: tuple[tuple[Fault, str, Callable[[str], bool], Callable[[str], str]], ...] = (
    (Fault.END_MISSING, f"with {END_TOKEN} written after each text the values are right",
     lambda _: True, lambda text: text + END_TOKEN),
    (Fault.WRONG_TEMPLATE, "documents are right, queries are not",
     lambda text: not _is_query(text), lambda text: text),
    (Fault.WRONG_TEMPLATE, "documents are given the query's prompt",
     _is_query, lambda text: text.rpartition("\nQuery:")[2]),
)  # fmt: skip


def _name_by_rewriting(subject: Subject, golden: Golden) -> Check | None:
    for fault, detail, is_asked, rewrite in REWRITINGS:
        off = compare(
            golden,
            lambda texts, rewrite=rewrite: subject.alone([rewrite(text) for text in texts]),
            is_asked=is_asked,
        )
        if precision_of(off) in {"float32", "half"}:
            return wrong(fault, detail)
    return None


def _name_by_ids(subject: Subject, golden: Golden) -> Check | None:
    """Return what the server makes of a text, where it also takes token ids and is right there."""
    known = (v for v in golden.vectors if v.get("token_ids") and len(v["values"]) >= 32)
    if (one := next(known, None)) is None:
        return None
    ids = one["token_ids"]
    recipes = [recipe for recipe in RECIPES if recipe.fault in END_FAULTS]
    try:
        by_ids = subject.embed([ids])
        answers = [subject.embed([r.change_ids(ids, ids[-1] + IM_END_AFTER)]) for r in recipes]
    except Refusal:
        return None
    is_right = compare(golden, lambda _: by_ids, is_asked=lambda text: text == one["text"])
    if precision_of(is_right) not in {"float32", "half"}:
        return None
    given = subject.alone([one["text"]])
    off = [distances(given, vectors)[0] for vectors in answers]
    most = min(CLEARLY * distances(given, by_ids)[0], LIMITS["half"]["1 - cosine"])
    nearest = recipes[int(np.argmin(off))]
    return wrong(nearest.fault, nearest.detail) if min(off) <= most else None


def _name_by_count(subject: Subject, golden: Golden) -> Check | None:
    """Return what the server's own count of tokens points to."""
    known = [one for one in golden.vectors if one.get("token_ids")]
    counts = subject.counts([one["text"] for one in known])
    pairs = zip(known, counts, strict=True)
    more = {count - len(one["token_ids"]) for one, count in pairs if count is not None}
    said = "the server counts {} than there are"
    off = compare(golden, subject.alone).get("1 - cosine", 0.0)
    if more == {1} and off < MOST_BY_DOUBLING:
        return wrong(Fault.END_DOUBLED, said.format("one token more"), is_certain=False)
    if more == {-1}:
        return wrong(Fault.END_MISSING, said.format("one token less"), is_certain=False)
    if more and min(more) > 1:
        detail = said.format(f"{min(more)} tokens more")
        return wrong(Fault.WRONG_TEMPLATE, detail, is_certain=False)
    return None


def _name_by_mean(subject: Subject, golden: Golden) -> Check | None:
    """Return mean pooling if end tokens written after a text bring its vector nearer.

    They weigh in a mean, and each one's own state is near the right vector. Where the last token
    is pooled they only lead away.
    """
    known = [one for one in golden.vectors if len(one["values"]) == golden.width]
    if not known:
        return None
    texts = [one["text"] for one in known]
    bare, ended = subject.alone(texts), subject.alone([text + END_TOKEN * 4 for text in texts])
    values = np.array([one["values"] for one in known])[:, : bare.shape[1]]
    if not (distances(ended, values) < 0.8 * distances(bare, values)).all():
        return None
    detail = f"{END_TOKEN} written after a text, four times, brings its vector nearer"
    return wrong(Fault.MEAN_POOLING, detail, is_certain=False)
