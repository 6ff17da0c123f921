"""Relations between a backend's own answers that hold for any weights."""

from __future__ import annotations

import numpy as np

from .faults import Check, Fault
from .subject import Interview, Refusal, Vectors, distances, unit
from .texts import (
    DOCUMENTS,
    NUM_TAIL_WORDS_UNTIL_DIFFERENT,
    OTHER_INSTRUCTION,
    QUERIES,
    QUERY_READINGS,
    RIGHT_QUERY,
    SAME_BEGINNING,
    long_texts,
    query_strings,
)

NORM_ATOL = 0.01  # of a unit vector: float16 sums of 4,096 squares stay within it
EXACT = 1e-10  # 1 - cosine of what is computed twice in one order
# 1 - cosine of one text's vectors: bfloat16 sums in another order make 5e-5, and another text's are
# 1e-1 off; with and without an instruction tiny's are 2e-3 off, the real models' 1e-1.
SAME = 1e-3
CLEARLY = 0.25  # the nearest of several readings is at most this far, by the right one's distance
COMMON_LIMITS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def check_finite(interview: Interview) -> Check:
    """Whether every number of every vector is one."""
    texts = [*DOCUMENTS, *query_strings()]
    try:
        vectors = interview.alone(texts).vectors
    except Refusal as refusal:
        return Check(name="finite", verdict="wrong", detail=f"a short text is refused: {refusal}")
    is_bad = [not np.isfinite(vector).all() for vector in vectors]
    bad = [text for text, is_it in zip(texts, is_bad, strict=True) if is_it]
    if not bad:
        return Check(name="finite", verdict="right", detail=f"{len(texts)} of {len(texts)} texts")
    detail = f"{len(bad)} of {len(texts)} vectors hold NaN or inf, that of {bad[0]!r} first"
    return Check(name="finite", verdict="wrong", detail=detail, fault=Fault.NON_FINITE)


def check_whole_text(interview: Interview) -> Check:
    """Whether a vector depends on more than its text's first token."""
    same = float(distances(*_rows(interview.alone(SAME_BEGINNING).vectors))[0])
    others = interview.alone(DOCUMENTS[:2]).vectors
    apart = float(distances(*_rows(others))[0])
    name = "reads the whole text"
    if same > SAME:
        return Check(name=name, verdict="right", detail="texts with one beginning differ")
    if apart <= SAME:
        detail = "all texts have the same vector"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.OTHER_WEIGHTS)
    detail = "texts that share their first token have the same vector"
    return Check(name=name, verdict="wrong", detail=detail, fault=Fault.FIRST_TOKEN_POOLING)


def check_length_one(interview: Interview, *, model_width: int | None) -> Check:
    """Whether vectors have length one; `model_width` is the model's own width, if known."""
    vectors = interview.alone(DOCUMENTS).vectors
    norms = np.linalg.norm(vectors, axis=1)
    detail = f"lengths {norms.min():.4f} to {norms.max():.4f}"
    name = "unit length"
    if np.abs(norms - 1).max() <= NORM_ATOL:
        return Check(name=name, verdict="right", detail=detail)
    # Before normalisation they are far longer than one: 92 to 97 in the 0.6B, 12 to 16 in tiny.
    is_cut = norms.max() < 1 and (model_width is None or vectors.shape[1] < model_width)
    return Check(
        name=name,
        verdict="wrong",
        detail=detail,
        fault=Fault.CUT_WITHOUT_RENORMALIZING if is_cut else Fault.NOT_NORMALIZED,
        is_certain=not is_cut or model_width is not None,
    )


def check_dimensions(interview: Interview) -> Check:
    """Whether `dimensions` cuts and then normalises."""
    name = "dimensions"
    whole = interview.alone(DOCUMENTS[:3]).vectors
    width = max(32, whole.shape[1] // 4)
    if width >= whole.shape[1]:
        return Check(name=name, verdict="skipped", detail=f"vectors have {whole.shape[1]}")
    try:
        cut = np.concatenate(
            [interview.subject.embed([t], dimensions=width) for t in DOCUMENTS[:3]]
        )
    except Refusal as refusal:
        return Check(name=name, verdict="note", detail=f"not taken: {refusal}")
    if cut.shape[1] != width:
        detail = f"asked for {width}, got {cut.shape[1]}: cut and normalise them yourself"
        return Check(name=name, verdict="note", detail=detail)
    norms, off = np.linalg.norm(cut, axis=1), distances(cut, whole[:, :width]).max()
    if off > SAME:
        detail = f"{width} dimensions are not the first {width} (1 - cosine {off:.1e})"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.CUT_ELSEWHERE)
    is_unit_whole = np.abs(np.linalg.norm(whole, axis=1) - 1).max() <= NORM_ATOL
    if np.abs(norms - 1).max() > NORM_ATOL and is_unit_whole:
        detail = f"at {width} dimensions lengths are {norms.min():.3f} to {norms.max():.3f}"
        fault = Fault.CUT_WITHOUT_RENORMALIZING
        return Check(name=name, verdict="wrong", detail=detail, fault=fault)
    return Check(name=name, verdict="right", detail=f"{width} are the first {width}, normalised")


def check_batch(interview: Interview) -> Check:
    """Whether a text has the same vector, in its own place, among others as alone."""
    name = "alone = batched"
    texts = sorted({*DOCUMENTS, *long_texts(40)}, key=lambda text: len(text.encode()))
    texts = [*texts[::2], *texts[1::2]]  # neither by length nor against it
    alone, batched = interview.alone(texts).vectors, interview.subject.embed(texts)
    if alone.shape != batched.shape:
        detail = f"{len(texts)} texts gave vectors of shape {batched.shape}"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.DEPENDS_ON_BATCH)
    off = distances(alone, batched)
    wrong = off > SAME
    if not wrong.any():
        return _check_equal_lengths(interview, float(off.max()))
    nearest = (unit(batched) @ unit(alone).T).argmax(axis=1)
    in_place = np.take_along_axis(unit(batched) @ unit(alone).T, nearest[:, None], axis=1)
    if sorted(nearest) == list(range(len(texts))) and (in_place > 1 - SAME).all():
        detail = f"{int(wrong.sum())} of {len(texts)} vectors stand at another text's place"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.ORDER_LOST)
    detail = f"{int(wrong.sum())} of {len(texts)} vectors change in company (1 - cosine up to "
    detail += f"{off.max():.1e})"
    num_bytes = np.array([len(text.encode()) for text in texts])
    is_long = num_bytes > 0.75 * num_bytes.max()  # hardly padded: at least one of them not at all
    if not wrong[is_long].all() and wrong[~is_long].all():
        detail += ", those of the shorter texts"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.WRONG_PADDING)
    return Check(name=name, verdict="wrong", detail=detail, fault=Fault.DEPENDS_ON_BATCH)


def _check_equal_lengths(interview: Interview, largest: float) -> Check:
    """Whether texts of one length keep their vectors together.

    TEI's candle backend lost its causal mask there (text-embeddings-inference#882).
    """
    name, texts = "alone = batched", list(long_texts(20))
    off = distances(interview.alone(texts).vectors, interview.subject.embed(texts)).max()
    if off > SAME:
        detail = f"texts of equal lengths change in company (1 - cosine {off:.1e})"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.DEPENDS_ON_BATCH)
    return Check(name=name, verdict="right", detail=f"1 - cosine at most {max(off, largest):.1e}")


def check_long_text(interview: Interview, *, max_tokens: int) -> Check:
    """Whether a change at either end of a long text changes its vector."""
    name, num_words = "long text", max_tokens - 8  # about a token a word, and the end token
    texts = long_texts(num_words)
    try:
        vector = interview.subject.embed([texts.text])
        sees_end = _is_other(interview, texts.text, vector, texts.other_end)
        sees_beginning = _is_other(interview, texts.text, vector, texts.other_beginning)
    except Refusal as refusal:
        detail = f"about {num_words} tokens are refused, which is no silent cut: {refusal}"
        return Check(name=name, verdict="note", detail=detail)
    if sees_end and sees_beginning:
        return Check(name=name, verdict="right", detail=f"about {num_words} tokens are read")
    detail = f"the beginning of a text of about {num_words} tokens is not read"
    if not sees_end:
        limit = _find_limit(interview, num_words)
        detail = f"texts are cut at about {limit} tokens, without a word"
    return Check(name=name, verdict="wrong", detail=detail, fault=Fault.TRUNCATED)


def _find_limit(interview: Interview, unseen: int) -> int:
    """Return how many tokens are read of a text whose end is not."""
    seen = 18
    while unseen - seen > max(1, seen // 100):
        middle = (seen + unseen) // 2
        texts = long_texts(middle)
        vector = interview.subject.embed([texts.text])
        if _is_other(interview, texts.text, vector, texts.other_end):
            seen = middle
        else:
            unseen = middle
    limit = seen - NUM_TAIL_WORDS_UNTIL_DIFFERENT + 2  # that word is read, and the end token
    return next((one for one in COMMON_LIMITS if abs(limit - one) <= one / 32), limit)


def _is_other(interview: Interview, text: str, vector: Vectors, other: str) -> bool:
    """Return whether two texts, one of them with this vector, are told apart."""
    off = np.abs(unit(vector) - unit(interview.subject.embed([other]))).max()
    if off > 1e-3:
        return True
    # A mean over thousands of tokens moves by little: only by less than noise is it equal.
    noise = np.abs(unit(vector) - unit(interview.subject.embed([text]))).max()
    return bool(off > max(1e-7, 2 * noise))


def check_query_template(interview: Interview) -> Check:
    """Whether queries are read behind their instruction, in the trained form.

    A query's vector must be that of the whole string sent as a document. Raises Refusal where the
    subject takes no queries.
    """
    name, own = "instruction and template", interview.subject.instruction
    vectors = _of_queries(interview, own)
    right = _distance(interview, vectors, query_strings(QUERIES, own))
    if right > EXACT:
        off = {
            reading.detail: _distance(interview, vectors, [reading.of(q, own) for q in QUERIES])
            for reading in QUERY_READINGS
        }
        detail, nearest = min(off.items(), key=lambda item: item[1])
        if nearest <= CLEARLY * right:
            return Check(name=name, verdict="wrong", detail=detail, fault=Fault.WRONG_TEMPLATE)
    if right > SAME:
        detail = f"queries are read in no known form (1 - cosine {right:.1e})"
        return Check(name=name, verdict="wrong", detail=detail, fault=Fault.WRONG_TEMPLATE)
    vectors = _of_queries(interview, OTHER_INSTRUCTION)
    right = _distance(interview, vectors, query_strings(QUERIES, OTHER_INSTRUCTION))
    ignored = _distance(interview, vectors, query_strings(QUERIES, own))
    if right > EXACT and ignored <= CLEARLY * right:
        fault = Fault.INSTRUCTION_IGNORED
        return Check(name=name, verdict="wrong", detail="a call's own is not read", fault=fault)
    return Check(name=name, verdict="right", detail="as " + repr(RIGHT_QUERY.template))


def reads_roles(interview: Interview) -> bool:
    """Return whether a server tells a query from a document; OpenAI's interface does not."""
    vectors = _of_queries(interview, interview.subject.instruction)
    return bool(distances(vectors, interview.alone(QUERIES).vectors).max() > SAME)


def _of_queries(interview: Interview, instruction: str) -> Vectors:
    """Return the vectors of the queries, each asked for alone."""
    return np.concatenate([interview.subject.embed_queries([q], instruction) for q in QUERIES])


def check_prompt_is_read(interview: Interview) -> Check:
    """Whether a prompt in the text changes the vector."""
    bare, prompted = (interview.alone(texts).vectors for texts in (QUERIES, query_strings()))
    off = distances(bare, prompted).min()
    if off > SAME:
        detail = "a prompt in the text is read; the client must write it"
        return Check(name="instruction", verdict="right", detail=detail)
    detail = "a query has the same vector with and without its prompt"
    fault = Fault.WRONG_TEMPLATE
    return Check(name="instruction", verdict="wrong", detail=detail, fault=fault)


def _distance(interview: Interview, vectors: Vectors, texts: list[str]) -> float:
    """Return the mean distance of vectors from those of texts, each asked for alone."""
    return float(distances(vectors, interview.alone(texts).vectors).mean())


def _rows(vectors: Vectors) -> tuple[Vectors, Vectors]:
    return vectors[:1], vectors[1:]
