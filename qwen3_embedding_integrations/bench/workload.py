"""What every engine gets: the documents' token ids, and queries behind the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.inputs import InputRules, prepare
from ..core.prompts import WEB_SEARCH, query_prompt
from ..core.tokenizer import Tokenizer

MEDIAN_LENGTH, SIGMA, MIN_LENGTH, MAX_LENGTH = 120, 0.8, 3, 1024
MAX_ID = 150_000  # above it stand special and unused ids
QUERY_TOKENS = 14
TOKENS_PER_LENGTH, MAX_TEXTS_PER_LENGTH = 4096, 256
STAGE_LENGTHS = [128] * 4
NUM_CONCURRENT = 16
# Frequent enough to be one token each, in any vocabulary.
WORDS = """
    how what where when which who does can should will the a my your new old best free long
    first last early water house school book music city river mountain phone letter paper light
    road market price bank train ship plane garden table door window winter summer morning day
    night year week world country state law court right work open close find keep take make give
    send read write learn change return move before after between without with from into about
"""

TokenIds = list[int]


@dataclass(frozen=True)
class Workload:
    """The documents and queries of a run, the same in every run with the same numbers."""

    documents: list[TokenIds]
    queries: list[str]
    prefix_ids: TokenIds  # of the instruction: the same for every query
    query_ids: list[TokenIds]  # what follows them
    concurrent_queries: list[str]
    by_length: dict[int, list[TokenIds]]  # texts that ours is measured on apart
    stage_ids: list[TokenIds]  # one forward of 512 tokens
    stage_strings: list[str]  # about as many tokens

    @property
    def whole_query_ids(self) -> list[TokenIds]:
        """The queries for an engine that reads the instruction each time."""
        return [self.prefix_ids + token_ids for token_ids in self.query_ids]

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return sum(map(len, self.documents))


def make_workload(
    tokenizer: Tokenizer, *, num_documents: int, num_queries: int, lengths: Sequence[int] = ()
) -> Workload:
    """Return documents of lognormal length and queries of QUERY_TOKENS tokens, all unique.

    Of each of `lengths` there are texts of TOKENS_PER_LENGTH tokens in all, as far as it allows.
    """
    rng = np.random.default_rng(0)
    document_lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), SIGMA, num_documents))
    document_lengths = np.clip(document_lengths, MIN_LENGTH, MAX_LENGTH).astype(int).tolist()
    queries = make_queries(tokenizer, num_queries + NUM_CONCURRENT)
    queries, concurrent = queries[:num_queries], queries[num_queries:]
    rules = InputRules(max_length=8192, on_too_long="error", on_empty="error")
    inputs = prepare(tokenizer, queries, "queries", rules, prompt=query_prompt(WEB_SEARCH))
    num_texts = {n: max(1, min(MAX_TEXTS_PER_LENGTH, TOKENS_PER_LENGTH // n)) for n in lengths}
    num_stage_strings = sum(STAGE_LENGTHS) // QUERY_TOKENS
    return Workload(
        documents=make_texts(tokenizer, document_lengths),
        queries=queries,
        prefix_ids=list(inputs.prefix_ids),
        query_ids=[token_ids.tolist() for token_ids in inputs.sequences],
        concurrent_queries=concurrent,
        by_length={n: make_texts(tokenizer, [n] * num) for n, num in num_texts.items()},
        stage_ids=make_texts(tokenizer, STAGE_LENGTHS),
        stage_strings=[queries[i % num_queries] for i in range(num_stage_strings)],
    )


def make_texts(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[TokenIds]:
    """Return one text per length: random ids, no two alike as far as there are so many."""
    rng = np.random.default_rng(1)
    num_ids = min(MAX_ID, tokenizer.end_id)
    texts: list[TokenIds] = []
    for length in lengths:
        start = rng.integers(num_ids, size=max(1, length - 1)).tolist()
        texts.append([*start, tokenizer.end_id][:length])
    return texts


def make_queries(tokenizer: Tokenizer, num_queries: int) -> list[str]:
    """Return distinct lists of words, each of QUERY_TOKENS tokens without the end token."""
    rng = np.random.default_rng(2)
    words = WORDS.split()
    queries: dict[str, None] = {}
    while len(queries) < num_queries:
        query = " " + " ".join(rng.choice(words, size=QUERY_TOKENS))
        if len(tokenizer.encode([query])[0]) == QUERY_TOKENS + 1:
            queries[query] = None
    return list(queries)
