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

    @property
    def whole_query_ids(self) -> list[TokenIds]:
        """The queries for an engine that reads the instruction each time."""
        return [self.prefix_ids + token_ids for token_ids in self.query_ids]

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return sum(map(len, self.documents))


def make_workload(tokenizer: Tokenizer, *, num_documents: int, num_queries: int) -> Workload:
    """Return documents of lognormal length and queries of QUERY_TOKENS tokens, all unique."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), SIGMA, num_documents))
    documents = make_texts(tokenizer, np.clip(lengths, MIN_LENGTH, MAX_LENGTH).astype(int).tolist())
    queries = make_queries(tokenizer, num_queries + NUM_CONCURRENT)
    queries, concurrent = queries[:num_queries], queries[num_queries:]
    rules = InputRules(max_length=8192, on_too_long="error", on_empty="error")
    inputs = prepare(tokenizer, queries, "queries", rules, prompt=query_prompt(WEB_SEARCH))
    query_ids = [token_ids.tolist() for token_ids in inputs.sequences]
    return Workload(documents, queries, list(inputs.prefix_ids), query_ids, concurrent)


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
