"""The values that are published, or recorded by us, for a model, beside a backend's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from ..core.prompts import END_TOKEN
from .faults import Check, Fault
from .subject import Interview, Refusal, Vectors, distances, unit
from .texts import DOCUMENTS

Embed = Callable[[Sequence[str]], Vectors]

NAMES = re.compile(r"(?:.*/)?qwen3-embedding[-_:](0\.6b|4b|8b)(?:[-_:.](?:gguf|onnx|latest))?")
PRECISIONS = ("float32", "half", "quantised")
# Largest difference of a cosine and of a unit vector's number, and 1 - cosine of a whole vector:
# 1e-4, 1e-5, 1e-5 in float32, 6e-3, 4e-3, 5e-4 in bfloat16 and float16 are published tolerances.
LIMITS = {
    "float32": (1e-4, 1e-5, 1e-5),
    "half": (6e-3, 4e-3, 5e-4),
    "quantised": (2e-2, 1e-2, 1e-2),
}
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

    @property
    def of_documents(self) -> Golden:
        """The values of texts that are no queries."""
        texts = {name: text for name, text in self.texts.items() if not _is_query(text)}
        return replace(
            self,
            texts=texts,
            pairs=[pair for pair in self.pairs if set(pair[:2]) <= set(texts)],
            vectors=[one for one in self.vectors if not _is_query(one["text"])],
        )


class Deviation(NamedTuple):
    """How far answers are from the values, at most; None where nothing could be compared."""

    cosine: float | None
    number: float | None
    whole: float | None

    @property
    def precision(self) -> str | None:
        """The finest arithmetic that explains it, None if none does."""
        for precision in PRECISIONS:
            limits = LIMITS[precision]
            # Not `value > limit`: a NaN is no small deviation.
            if all(v is None or v <= limit for v, limit in zip(self, limits, strict=True)):
                return precision
        return None

    def __str__(self) -> str:
        words = ("cosines by {:.1e}", "numbers by {:.1e}", "1 - cosine {:.1e}")
        given = zip(words, self, strict=True)
        return "off at most: " + ", ".join(w.format(v) for w, v in given if v is not None)


def find_golden(model: str, content_hash: str | None = None) -> Golden | None:
    """Return the values of a model by its name or by its files' hash, None if there are none."""
    known = _read_all()
    if content_hash is not None:
        for golden in known.values():
            if golden.content_hash == content_hash:
                return golden
    if model == "tiny":
        return known["tiny"]
    match = NAMES.fullmatch(model.lower())
    return known[f"qwen3-embedding-{match[1]}"] if match else None


@cache
def _read_all() -> dict[str, Golden]:
    folder = files("qwen3_embedding_integrations") / "golden"
    return {
        name: Golden(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        for name in (
            "qwen3-embedding-0.6b", "qwen3-embedding-4b", "qwen3-embedding-8b", "tiny",
        )
    }  # fmt: skip


def check_golden(
    interview: Interview, golden: Golden, *, dtype: str | None, quantization: str | None
) -> Check:
    """Whether answers are the model's published values; else what the pattern points to."""
    name, width = "published values", interview.alone(DOCUMENTS[:1]).vectors.shape[1]
    if width > golden.width:
        detail = f"vectors have {width} dimensions, {golden.model} makes {golden.width}"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.OTHER_WEIGHTS)
    deviation = compare(golden, lambda texts: interview.alone(texts).vectors)
    if deviation is None:
        detail = f"nothing is known of {golden.model} at this width"
        return Check(name=name, verdict="skipped", detail=detail)
    allowed = "quantised" if quantization else "float32" if dtype == "float32" else "half"
    detail = f"{golden.model}, {deviation}"
    precision = deviation.precision
    if precision is not None and PRECISIONS.index(precision) <= PRECISIONS.index(allowed):
        return Check(name=name, verdict="right", detail=detail)
    return _name(interview, golden, deviation, Check(name=name, verdict="wrong", detail=detail))


def compare(golden: Golden, embed: Embed) -> Deviation | None:
    """Return how far `embed`'s vectors, no wider than the values, are from them.

    None if none can be compared.
    """
    texts = [*golden.texts.values(), *(one["text"] for one in golden.vectors)]
    if not texts:
        return None
    width = embed(texts[:1]).shape[1]
    cosine = number = whole = None
    if width == golden.width and golden.pairs:
        vectors = unit(embed(list(golden.texts.values())))
        by_name = dict(zip(golden.texts, vectors, strict=True))
        cosine = max(abs(float(by_name[a] @ by_name[b]) - score) for a, b, score in golden.pairs)
    for one in golden.vectors:
        values = np.array(one["values"])
        if len(values) == golden.width:
            off = distances(embed([one["text"]]), values[None, :width])
            whole = max(whole or 0.0, float(off[0]))
        elif width == golden.width:
            off = np.abs(unit(embed([one["text"]]))[0, : len(values)] - values).max()
            number = max(number or 0.0, _beyond(float(off), one["atol"]))
    if cosine is number is whole is None:
        return None
    return Deviation(cosine, number, whole)


def _is_query(text: str) -> bool:
    return text.startswith("Instruct: ")


def _beyond(off: float, atol: float) -> float:
    """Return a deviation as one of values that are exact."""
    return 0.0 if off <= atol else off


def _name(interview: Interview, golden: Golden, deviation: Deviation, wrong: Check) -> Check:
    """Return the check with the fault that undone gives the values, or that is likeliest."""
    guesses = (_name_by_ids, _name_by_end, _name_by_documents, _name_by_prompt, _name_by_count)
    found = next((one for guess in guesses if (one := guess(interview, golden))), None)
    if found is None and deviation.precision is not None:
        detail = f"{wrong.detail}: as far off as quantised weights"
        return replace(wrong, verdict="note", detail=detail)
    found = found or _name_by_mean(interview, golden)
    if found is None:
        detail = "or a fault that shows only beside the weights: give --reference"
        found = _Guess(Fault.OTHER_WEIGHTS, detail, is_certain=False)
    detail = f"{found.detail} ({wrong.detail})"
    return replace(wrong, detail=detail, fault=found.fault, is_certain=found.is_certain)


class _Guess(NamedTuple):
    fault: Fault
    detail: str
    is_certain: bool = True


def _name_by_ids(interview: Interview, golden: Golden) -> _Guess | None:
    """Return what the server makes of a text, where it also takes token ids and is right there."""
    one = next((v for v in golden.vectors if v.get("token_ids") and len(v["values"]) >= 32), None)
    if one is None:
        return None
    ids = [int(i) for i in one["token_ids"]]
    end = ids[-1]
    others = {
        _Guess(Fault.END_MISSING, "a text is read without <|endoftext|>"): ids[:-1],
        _Guess(Fault.END_DOUBLED, "a text is read with two <|endoftext|>"): [*ids, end],
        _Guess(Fault.END_WRONG, "<|im_end|> in place of <|endoftext|>"): [
            *ids[:-1],
            end + IM_END_AFTER,
        ],
        _Guess(Fault.END_WRONG, "<|im_end|> after <|endoftext|>"): [*ids, end + IM_END_AFTER],
    }
    try:
        by_ids = interview.subject.embed_ids(ids)
        answers = {fault: interview.subject.embed_ids(row) for fault, row in others.items()}
    except Refusal:
        return None
    values = np.array(one["values"])
    given = interview.alone([one["text"]]).vectors
    if not len(values) <= by_ids.shape[1] == given.shape[1]:
        return None
    if np.abs(unit(by_ids)[0, : len(values)] - _unit_values(values, golden)).max() > 4e-3:
        return None
    off = {fault: float(distances(given, vector)[0]) for fault, vector in answers.items()}
    fault = min(off, key=lambda one: off[one])
    right = float(distances(given, by_ids)[0])
    return fault if off[fault] <= 0.25 * right and off[fault] <= LIMITS["half"][2] else None


def _unit_values(values: Vectors, golden: Golden) -> Vectors:
    """Return a unit vector's values: whole ones are not normalised, beginnings are."""
    return unit(values[None])[0] if len(values) == golden.width else values


def _name_by_end(interview: Interview, golden: Golden) -> _Guess | None:
    ended = compare(golden, lambda texts: interview.alone([t + END_TOKEN for t in texts]).vectors)
    if ended is None or ended.precision not in {"float32", "half"}:
        return None
    detail = f"with {END_TOKEN} written after each text the values are right"
    return _Guess(Fault.END_MISSING, detail)


def _name_by_documents(interview: Interview, golden: Golden) -> _Guess | None:
    documents = compare(golden.of_documents, lambda texts: interview.alone(texts).vectors)
    if documents is None or documents.precision not in {"float32", "half"}:
        return None
    return _Guess(Fault.WRONG_TEMPLATE, "documents are right, queries are not")


def _name_by_prompt(interview: Interview, golden: Golden) -> _Guess | None:
    """Return the fault of a server that gives a bare text the value of a whole query string."""
    one = next((v for v in golden.vectors if _is_query(v["text"])), None)
    if one is None:
        return None
    values = np.array(one["values"])
    bare = interview.alone([one["text"].rpartition("\nQuery:")[2]]).vectors
    if bare.shape[1] != golden.width:
        return None
    off = np.abs(unit(bare)[0, : len(values)] - _unit_values(values, golden)).max()
    if off > max(LIMITS["half"][1], one["atol"]):
        return None
    return _Guess(Fault.WRONG_TEMPLATE, "documents are given the query's prompt")


def _name_by_count(interview: Interview, golden: Golden) -> _Guess | None:
    """Return what the server's own count of tokens points to."""
    known = [one for one in golden.vectors if one.get("token_ids")]
    counts = interview.alone([one["text"] for one in known]).num_tokens if known else ()
    more = {
        count - len(one["token_ids"])
        for one, count in zip(known, counts, strict=True)
        if count is not None
    }
    said = "the server counts {} than there are"
    near = compare(golden, lambda texts: interview.alone(texts).vectors)
    is_near = near is None or near.whole is None or near.whole < MOST_BY_DOUBLING
    if more == {1} and is_near:
        return _Guess(Fault.END_DOUBLED, said.format("one token more"), is_certain=False)
    if more == {-1}:
        return _Guess(Fault.END_MISSING, said.format("one token less"), is_certain=False)
    if more and min(more) > 1:
        detail = said.format(f"{min(more)} tokens more")
        return _Guess(Fault.WRONG_TEMPLATE, detail, is_certain=False)
    return None


def _name_by_mean(interview: Interview, golden: Golden) -> _Guess | None:
    """Return mean pooling if end tokens written after a text bring its vector nearer.

    They weigh in a mean, and each one's own state is near the right vector. Where the last token
    is pooled they only lead away.
    """
    known = [one for one in golden.vectors if len(one["values"]) == golden.width]
    if not known:
        return None
    texts = [one["text"] for one in known]
    values = np.array([one["values"] for one in known])
    width = interview.alone(texts).vectors.shape[1]
    bare, ended = (
        distances(interview.alone([text + tail for text in texts]).vectors, values[:, :width])
        for tail in ("", END_TOKEN * 4)
    )
    if not (ended < 0.8 * bare).all():
        return None
    detail = f"{END_TOKEN} written after a text, four times, brings its vector nearer"
    return _Guess(Fault.MEAN_POOLING, detail, is_certain=False)
