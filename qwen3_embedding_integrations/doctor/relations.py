"""Relations between a backend's own answers that hold for any weights."""

from __future__ import annotations

import numpy as np

from ..core.prompts import format_queries
from .report import Check, Fault, note, right, skipped, wrong
from .subject import CLEARLY, Refusal, Subject, Vectors, distances, unit
from .texts import (
    DOCUMENTS,
    NUM_TAIL_WORDS_UNTIL_DIFFERENT,
    OTHER_INSTRUCTION,
    QUERIES,
    QUERY_READINGS,
    QUERY_STRINGS,
    SAME_BEGINNING,
    long_texts,
)

NORM_ATOL = 0.01  # of a unit vector: float16 sums of 4,096 squares stay within it
EXACT = 1e-10  # 1 - cosine of what is computed twice in one order
# 1 - cosine of one text's vectors: bfloat16 sums in another order make 5e-5, and another text's are
# 1e-1 off; with and without an instruction tiny's are 2e-3 off, the real models' 1e-1.
SAME = 1e-3
COMMON_LIMITS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def check_finite(subject: Subject) -> Check:
    """Whether every number of every vector is one."""
    texts = [*DOCUMENTS, *QUERY_STRINGS]
    try:
        is_finite = np.isfinite(subject.alone(texts)).all(axis=1)
    except Refusal as refusal:
        return wrong(None, f"a short text is refused: {refusal}")
    if is_finite.all():
        return right(f"{len(texts)} of {len(texts)} texts")
    detail = f"{(~is_finite).sum()} of {len(texts)} vectors hold NaN or inf, that of "
    return wrong(Fault.NON_FINITE, f"{detail}{texts[is_finite.argmin()]!r} first")


def check_whole_text(subject: Subject) -> Check:
    """Whether a vector depends on more than its text's first token."""
    first, same_beginning, other = subject.alone([DOCUMENTS[0], SAME_BEGINNING, DOCUMENTS[1]])
    if distances(first[None], same_beginning[None])[0] > SAME:
        return right("texts with one beginning differ")
    if distances(first[None], other[None])[0] <= SAME:
        return wrong(Fault.OTHER_WEIGHTS, "all texts have the same vector")
    detail = "texts that share their first token have the same vector"
    return wrong(Fault.FIRST_TOKEN_POOLING, detail)


def check_length_one(subject: Subject) -> Check:
    """Whether vectors have length one."""
    norms = _norms(vectors := subject.alone(DOCUMENTS))
    detail = f"lengths {norms.min():.4f} to {norms.max():.4f}"
    if _are_one(norms):
        return right(detail)
    # Before normalisation they are far longer than one: 92 to 97 in the 0.6B, 12 to 16 in tiny.
    is_cut = norms.max() < 1 and (subject.width is None or vectors.shape[1] < subject.width)
    fault = Fault.CUT_WITHOUT_RENORMALIZING if is_cut else Fault.NOT_NORMALIZED
    return wrong(fault, detail, is_certain=not is_cut or subject.width is not None)


def check_dimensions(subject: Subject) -> Check:
    """Whether `dimensions` cuts and then normalises."""
    whole = subject.alone(DOCUMENTS[:3])
    width = max(32, whole.shape[1] // 4)
    if width >= whole.shape[1]:
        return skipped(f"vectors have {whole.shape[1]}")
    try:
        cut = np.concatenate([subject.embed([t], dimensions=width) for t in DOCUMENTS[:3]])
    except Refusal as refusal:
        return note(f"not taken: {refusal}")
    if cut.shape[1] != width:
        return note(f"asked for {width}, got {cut.shape[1]}: cut and normalise them yourself")
    norms, off = _norms(cut), distances(cut, whole[:, :width]).max()
    if off > SAME:
        detail = f"{width} dimensions are not the first {width} (1 - cosine {off:.1e})"
        return wrong(Fault.CUT_ELSEWHERE, detail)
    if not _are_one(norms) and _are_one(_norms(whole)):
        detail = f"at {width} dimensions lengths are {norms.min():.3f} to {norms.max():.3f}"
        return wrong(Fault.CUT_WITHOUT_RENORMALIZING, detail)
    return right(f"{width} are the first {width}, normalised")


def check_batch(subject: Subject) -> Check:
    """Whether a text has the same vector, in its own place, among others as alone."""
    mixed = sorted({*DOCUMENTS, *long_texts(40)}, key=lambda text: len(text.encode()))
    mixed = [*mixed[::2], *mixed[1::2]]  # neither by length nor against it
    largest = 0.0
    # TEI's candle backend lost its causal mask among equal lengths (its #882).
    for texts in (mixed, list(long_texts(20))):
        alone, batched = subject.alone(texts), subject.embed(texts)
        if alone.shape != batched.shape:
            detail = f"{len(texts)} texts gave vectors of shape {batched.shape}"
            return wrong(Fault.DEPENDS_ON_BATCH, detail)
        off = distances(alone, batched)
        if (off > SAME).any():
            return _name_batch_fault(texts, alone, batched, off)
        largest = max(largest, float(off.max()))
    return right(f"1 - cosine at most {largest:.1e}")


def _name_batch_fault(texts: list[str], alone: Vectors, batched: Vectors, off: Vectors) -> Check:
    is_off, cosines = off > SAME, unit(batched) @ unit(alone).T
    detail = f"{is_off.sum()} of {len(texts)} vectors "
    is_permuted = sorted(cosines.argmax(axis=1)) == list(range(len(texts)))
    if is_permuted and (cosines.max(axis=1) > 1 - SAME).all():
        return wrong(Fault.ORDER_LOST, detail + "stand at another text's place")
    detail += f"change in company (1 - cosine up to {off.max():.1e})"
    num_bytes = np.array([len(text.encode()) for text in texts])
    is_short = num_bytes <= 0.75 * num_bytes.max()  # the others are hardly padded, one not at all
    if is_short.any() and is_off[is_short].all() and not is_off[~is_short].all():
        return wrong(Fault.WRONG_PADDING, detail + ", those of the shorter texts")
    return wrong(Fault.DEPENDS_ON_BATCH, detail)


def check_long_text(subject: Subject) -> Check:
    """Whether a change at either end of a long text changes its vector."""
    assert subject.max_tokens is not None
    num_words = subject.max_tokens - 8  # about a token a word, and the end token
    text, other_end, other_beginning = long_texts(num_words)
    try:
        sees_end = _are_told_apart(subject, text, other_end)
        sees_beginning = _are_told_apart(subject, text, other_beginning)
    except Refusal as refusal:
        return note(f"about {num_words} tokens are refused, which is no silent cut: {refusal}")
    if not sees_end:
        limit = _find_limit(subject, num_words)
        return wrong(Fault.TRUNCATED, f"texts are cut at about {limit} tokens, without a word")
    if not sees_beginning:
        detail = f"the beginning of a text of about {num_words} tokens is not read"
        return wrong(Fault.TRUNCATED, detail)
    return right(f"about {num_words} tokens are read")


def _find_limit(subject: Subject, unseen: int) -> int:
    """Return how many tokens are read of a text whose end is not."""
    seen = 18
    while unseen - seen > max(1, seen // 100):
        middle = (seen + unseen) // 2
        if _are_told_apart(subject, *long_texts(middle)[:2]):
            seen = middle
        else:
            unseen = middle
    limit = seen - NUM_TAIL_WORDS_UNTIL_DIFFERENT + 2  # that word is read, and the end token
    return next((one for one in COMMON_LIMITS if abs(limit - one) <= one / 32), limit)


def _are_told_apart(subject: Subject, text: str, other: str) -> bool:
    """Return whether two texts have different vectors."""
    vector = unit(subject.alone([text]))
    off = np.abs(vector - unit(subject.embed([other]))).max()
    if off > 1e-3:
        return True
    # A mean over thousands of tokens moves by little: only by less than noise is it equal.
    noise = np.abs(vector - unit(subject.embed([text]))).max()
    return bool(off > max(1e-7, 2 * noise))


def check_template(subject: Subject) -> Check:
    """Whether queries are read behind their instruction, in the trained form.

    A query's vector must be that of the whole string sent as a document. A server that does not
    tell a query from a document, as OpenAI's interface does not, must read the client's prompt.
    """
    own = subject.instruction
    try:
        vectors = subject.embed_queries(QUERIES, own)
    except Refusal:
        vectors = subject.alone(QUERIES)
    if subject.is_server and distances(vectors, subject.alone(QUERIES)).max() <= SAME:
        return _check_prompt_is_read(subject)
    if (misread := _name_reading(subject, vectors)) is not None:
        return wrong(Fault.WRONG_TEMPLATE, misread)
    vectors = subject.embed_queries(QUERIES, OTHER_INSTRUCTION)
    off = _off(subject, vectors, format_queries(QUERIES, OTHER_INSTRUCTION))
    if off <= EXACT or _off(subject, vectors, format_queries(QUERIES, own)) > CLEARLY * off:
        return right("as 'Instruct: {instruction}\\nQuery:{text}'")
    if subject.is_server:
        return note("the server has but one instruction")
    return wrong(Fault.INSTRUCTION_IGNORED, "a call's own is not read")


def _name_reading(subject: Subject, vectors: Vectors) -> str | None:
    """Return what is wrong with the strings behind these vectors of QUERIES, None if nothing."""
    own = subject.instruction
    off = _off(subject, vectors, format_queries(QUERIES, own))
    if off <= EXACT:
        return None
    readings = {
        detail: _off(subject, vectors, [form.format(instruction=own, text=q) for q in QUERIES])
        for detail, form in QUERY_READINGS.items()
    }
    nearest = min(readings, key=lambda detail: readings[detail])
    if readings[nearest] <= CLEARLY * off:
        return nearest
    return f"queries are read in no known form (1 - cosine {off:.1e})" if off > SAME else None


def _check_prompt_is_read(subject: Subject) -> Check:
    if distances(subject.alone(QUERIES), subject.alone(QUERY_STRINGS)).min() > SAME:
        return right("a prompt in the text is read; the client must write it")
    detail = "a query has the same vector with and without its prompt"
    return wrong(Fault.WRONG_TEMPLATE, detail)


def _off(subject: Subject, vectors: Vectors, texts: list[str]) -> float:
    """Return the mean distance of vectors from those of texts, each asked for alone."""
    return float(distances(vectors, subject.alone(texts)).mean())


def _norms(vectors: Vectors) -> Vectors:
    return np.linalg.norm(vectors, axis=1)


def _are_one(norms: Vectors) -> bool:
    return bool(np.abs(norms - 1).max() <= NORM_ATOL)
