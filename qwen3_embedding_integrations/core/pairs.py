"""Queries with their documents to the sequences the engine takes: the frame shared, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as FastTokenizer

from ..errors import InputError, ModelLoadError, TextTooLongError
from .batching import Group
from .checkpoint import Task
from .inputs import warn_of_truncation
from .packing import Int32Array
from .prompts import (
    ANSWERS,
    RERANK_PREFIX,
    RERANK_SUFFIX,
    rerank_document,
    rerank_instruction,
    rerank_query,
)
from .texts import InputRules, check_text
from .tokenizer import PROBES, count_ids, encode_texts, load_tokenizer


class PairTokenizer:
    """Turns the parts of a reranker's prompt into token ids; safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.num_ids = count_ids(self._tokenizer)
        if appends_end(self._tokenizer):
            raise ModelLoadError(
                f"{folder}: the tokenizer appends a token to each text, as an embedding model's "
                "does and a reranker's does not; load an embedding model with Qwen3Encoder"
            )
        self.prefix_ids = tuple(self._ids(RERANK_PREFIX).tolist())
        self.suffix_ids = self._ids(RERANK_SUFFIX)
        self.answer_ids = [self._answer_id(folder, answer) for answer in ANSWERS]
        # From here on "<|im_end|>" in a document is text: it cannot end the turn and answer for us.
        self._tokenizer.encode_special_tokens = True
        self._check_borders(folder)
        # Not of a method, as in Tokenizer: the cache would hold its owner.
        self.head = lru_cache(maxsize=256)(partial(_head, self._tokenizer, self.prefix_ids))

    def encode_queries(self, queries: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each query's own part of the prompt, (L,) int32."""
        return encode_texts(self._tokenizer, [rerank_query(query) for query in queries])

    def encode_documents(self, documents: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each document's own part of the prompt, (L,) int32."""
        return encode_texts(self._tokenizer, [rerank_document(text) for text in documents])

    def encode_alone(
        self, instruction: str, query: str, documents: Sequence[str]
    ) -> list[Int32Array]:
        """Return the whole prompt's ids for each document, nothing shared, (L,) int32."""
        frame = [np.array(self.head(instruction), np.int32), *self.encode_queries([query])]
        return [
            np.concatenate([*frame, ids, self.suffix_ids])
            for ids in self.encode_documents(documents)
        ]

    def _ids(self, text: str) -> Int32Array:
        return encode_texts(self._tokenizer, [text])[0]

    def _answer_id(self, folder: Path, answer: str) -> int:
        token_id = self._tokenizer.token_to_id(answer)
        if token_id is None:
            raise ModelLoadError(f'{folder}: the tokenizer has no token "{answer}" to answer with')
        return token_id

    def _check_borders(self, folder: Path) -> None:
        """Refuse a tokenizer whose tokens span two parts of the prompt, whatever the texts."""
        before, between = rerank_instruction(""), rerank_query("")
        for probe in PROBES:
            text = rerank_document(probe)
            parts = [self._ids(part) for part in (before, between, text)]
            if not np.array_equal(np.concatenate(parts), self._ids(before + between + text)):
                raise ModelLoadError(
                    f"{folder}: tokenizer.json divides a reranker's prompt in another way than "
                    "Qwen3's; copy the model's own tokenizer.json there"
                )


def _head(
    tokenizer: FastTokenizer, prefix_ids: tuple[int, ...], instruction: str
) -> tuple[int, ...]:
    """Return the ids that all queries behind an instruction begin with."""
    return (*prefix_ids, *encode_texts(tokenizer, [rerank_instruction(instruction)])[0].tolist())


def find_task(folder: Path) -> Task:
    """Return what the model in a folder is for, by what its tokenizer does."""
    return "embedding" if appends_end(load_tokenizer(folder)) else "reranking"


def appends_end(tokenizer: FastTokenizer) -> bool:
    """Whether the tokenizer appends a token to each text: an embedding model's does."""
    return len(tokenizer.encode("").ids) > 0


@dataclass(frozen=True, slots=True)
class PairInputs:
    """The sequences of a call, grouped by what they begin with."""

    groups: list[Group]
    order: npt.NDArray[np.intp]  # (N,) which pair each sequence is, group after group
    num_tokens: int  # as each pair would be read by itself
    num_truncated: int

    def restore(self, results: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return one score per pair, (N,), in the order given, from the engine's (N, 1)."""
        scores = np.empty(len(self.order), np.float32)
        scores[self.order] = results[:, 0]
        return scores


def check_query(query: object, name: str = "query", index: int | None = None) -> None:
    """Raise InputError unless `query` is a text with something in it."""
    check_text(query, name, index)
    if not str(query).strip():
        raise InputError(f"{name} is blank: documents cannot be judged by it", index=index)


def check_documents(documents: Sequence[str]) -> None:
    """Raise TypeError or InputError unless every document can be read; blank ones can be."""
    if isinstance(documents, str):
        raise TypeError("documents is a str; pass a list: [document]")
    if not isinstance(documents, Sequence) or isinstance(documents, bytes | bytearray):
        raise TypeError(f"documents is a {type(documents).__name__}; pass a list of str")
    for index, document in enumerate(documents):
        check_text(document, f"documents[{index}]", index)


def prepare_pairs(
    tokenizer: PairTokenizer,
    queries: Sequence[str],
    query_of: npt.NDArray[np.intp],
    documents: Sequence[str],
    *,
    instruction: str,
    rules: InputRules,
) -> PairInputs:
    """Return what the engine reads of N documents, each judged by queries[query_of[i]].

    Documents are cut at what the rest of the prompt leaves of `rules.max_length`. The checks on
    the texts are the caller's. Raises InputError when a query leaves nothing.
    """
    head, own = tokenizer.head(instruction), tokenizer.encode_queries(queries)
    suffix = tokenizer.suffix_ids
    frames = [len(head) + len(ids) + len(suffix) for ids in own]
    for index, num_frame in enumerate(frames):
        if num_frame >= rules.max_length:
            raise InputError(
                f"query {queries[index]!r:.80} takes {num_frame} tokens with the instruction and "
                f"the frame, max_length is {rules.max_length}: no room is left for a document; "
                "shorten the query or raise max_length"
            )
    sequences = tokenizer.encode_documents(documents)
    num_frames = np.array(frames, np.int64)[query_of].tolist()
    lengths = [len(ids) + frame for ids, frame in zip(sequences, num_frames, strict=True)]
    too_long = [i for i, length in enumerate(lengths) if length > rules.max_length]
    if too_long and rules.on_too_long == "error":
        raise TextTooLongError(
            index=too_long[0],
            num_tokens=lengths[too_long[0]],
            max_length=rules.max_length,
            remedies=["truncate"],
        )
    if too_long:
        warn_of_truncation(too_long, lengths, "documents", rules)
        for i in too_long:
            sequences[i] = sequences[i][: rules.max_length - num_frames[i]]
    endings = [np.concatenate([ids, suffix]) for ids in sequences]
    groups, order = _group(head, own, query_of, endings)
    num_tokens = sum(min(length, rules.max_length) for length in lengths)
    return PairInputs(groups, order, num_tokens, len(too_long))


def _group(
    head: tuple[int, ...],
    queries: list[Int32Array],
    query_of: npt.NDArray[np.intp],
    endings: list[Int32Array],
) -> tuple[list[Group], npt.NDArray[np.intp]]:
    """Divide the sequences by what they share; return the groups and which pair is where.

    A query with many documents is computed once, behind the head, as their prefix. One with few
    shares the head alone: computing that anew for it would take more than it saves, and its
    documents can run beside other queries'.
    """
    shared: list[Int32Array] = []
    groups: list[Group] = [(shared, head)]
    order: list[list[int]] = [[]]
    by_query: list[list[int]] = [[] for _ in queries]
    for row, query in enumerate(query_of.tolist()):
        by_query[query].append(row)
    for ids, rows in zip(queries, by_query, strict=True):
        if len(head) + len(ids) < len(rows) * len(ids):
            groups.append(([endings[row] for row in rows], (*head, *ids.tolist())))
            order.append(rows)
        else:
            shared += [np.concatenate([ids, endings[row]]) for row in rows]
            order[0] += rows
    return groups, np.array([row for rows in order for row in rows], np.intp)
