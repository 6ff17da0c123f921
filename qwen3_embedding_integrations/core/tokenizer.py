"""Texts to token ids: one final <|endoftext|>, an own cut at max_length, the stable prefix.

The tokenizer is configured once, here, and never again: a tokenizer whose truncation is switched
per call cuts the texts of other threads (transformers#47085).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as FastTokenizer

from ..errors import InputError, ModelLoadError
from .packing import Int32Array
from .prompts import END_TOKEN
from .streaming import divide

# What may follow a prompt: each kind of character that a split pattern treats in its own way.
PROBES = (
    "a", "Ab1", " a", "  a", "1", "\n", "\n\na", "\t", ":", '"', "'s", "::(", "。", "中", "é",
    "e\u0301", "\u0301", "\u0338", "🚀", "\u200b", "\u3000中", "-", "_x", END_TOKEN, "",
)  # fmt: skip
SLICE = 4096  # texts tokenised at a time: an encoding takes many times the memory of its ids
MAX_PREFIX_TOKENS = 512  # a longer instruction is read anew: its keys, copied per text, fill memory
PARAGRAPH = re.compile(r"\n\s*\n\s*")
SENTENCE = re.compile(r"[.!?…]+[\"')\]]*\s+|[。！？；…]+[”’」』）]*\s*|\n")


class Prompt(NamedTuple):
    """The text before a query, divided where no query can change the tokens before."""

    prefix_ids: tuple[int, ...]  # the same for every query
    tail: str  # the rest of the prompt: its tokens depend on the query's first characters


class Tokenizer:
    """Turns texts into token ids; safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.end_id = self._check_end(folder)
        self.num_ids = count_ids(self._tokenizer)
        # Not of a method: a cache that held its owner would keep 30 MB until the collector runs.
        self.prompt = lru_cache(maxsize=256)(partial(_split_prompt, self._tokenizer))

    def encode(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return each text's token ids, (L,) int32, ending in exactly one appended end token."""
        return encode_texts(self._tokenizer, texts)

    def cut(self, ids: Int32Array, num_tokens: int) -> Int32Array:
        """Return the first `num_tokens` ids of a text, the last of them the end token."""
        return np.concatenate([ids[: num_tokens - 1], [self.end_id]]).astype(np.int32)

    def complete(self, ids: Sequence[int], name: str, index: int) -> Int32Array:
        """Return ids that someone else made, (L,) int32, with one end token.

        It is appended where it is missing. Raises InputError for an id the model has no row for,
        for none at all, and for a second end token at the end; `name` is what the ids are.
        """
        try:
            array = np.asarray(ids, np.int64)  # (L,)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{name} is not a list of token ids: {error}", index=index) from error
        if array.ndim != 1 or not len(array):
            raise InputError(f"{name} holds no token ids; leave it out", index=index)
        if array.min() < 0 or array.max() >= self.num_ids:
            raise InputError(
                f"{name} holds ids from {array.min()} to {array.max()}; the model knows 0 to "
                f"{self.num_ids - 1}: use its own tokenizer, or send texts",
                index=index,
            )
        if array[-1] != self.end_id:
            array = np.append(array, self.end_id)
        elif len(array) == 1 or array[-2] == self.end_id:
            raise InputError(
                f"{name} ends in {END_TOKEN} more than once, or is nothing else; the tokenizer "
                "appends it already: append no other",
                index=index,
            )
        return array.astype(np.int32)

    def chunk(self, text: str, max_tokens: int, *, head: str = "") -> list[Int32Array]:
        """Return a text's ids in pieces of at most `max_tokens`, each with its end token.

        Every piece begins with `head`. Pieces end where a paragraph ends, else where a sentence
        ends, else at any token; a border counts only in the second half of what fits, so that
        there are never more than twice as many pieces as needed.
        """
        encoding = self._tokenizer.encode(head + text)
        ids = np.array(encoding.ids[:-1], np.int32)
        ends = np.array([end for _, end in encoding.offsets[:-1]], np.int64)
        borders = [
            np.searchsorted(ends, [m.end() for m in pattern.finditer(head + text)], side="right")
            for pattern in (PARAGRAPH, SENTENCE)
        ]
        end = np.array([self.end_id], np.int32)
        start_of_next = np.array(self._tokenizer.encode(head).ids[:-1], np.int32)
        pieces: list[Int32Array] = []
        start, room = 0, max_tokens - 1
        while len(ids) - start > room:
            stop = _last_border(borders, start + room // 2, start + room)
            pieces.append(
                np.concatenate([start_of_next if start else ids[:0], ids[start:stop], end])
            )
            start, room = stop, max_tokens - 1 - len(start_of_next)
        pieces.append(np.concatenate([start_of_next if start else ids[:0], ids[start:], end]))
        return pieces

    def _check_end(self, folder: Path) -> int:
        end_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_id is None:
            raise ModelLoadError(f"{folder}: the tokenizer does not know {END_TOKEN}")
        for text in ("word", ""):
            num_ends = self._tokenizer.encode(text).ids[-2:].count(end_id)
            if num_ends != 1 or self._tokenizer.encode(text).ids[-1] != end_id:
                raise ModelLoadError(
                    f"{folder}: the tokenizer ends a text with {num_ends} {END_TOKEN}, a "
                    "Qwen3-Embedding tokenizer with exactly one; this is a reranker (load it with "
                    "Qwen3Reranker), a plain Qwen3 model, or an early revision: use "
                    "Qwen3-Embedding-0.6B at revision 97b0c614 or newer"
                )
        return end_id


def _split_prompt(tokenizer: FastTokenizer, prompt: str) -> Prompt:
    """Divide a prompt by trying what may follow; without a stable beginning, reuse nothing."""
    whole = tokenizer.encode_batch([prompt + probe for probe in PROBES])
    rows = [encoding.ids[:-1] for encoding in whole]
    num_stable = 0
    while all(len(ids) > num_stable for ids in rows) and (
        len({ids[num_stable] for ids in rows}) == 1
    ):
        num_stable += 1
    num_stable = min(num_stable, MAX_PREFIX_TOKENS)
    prefix = rows[-1][:num_stable]
    tail = prompt[whole[-1].offsets[num_stable - 1][1] :] if num_stable else prompt
    rests = tokenizer.encode_batch([tail + probe for probe in PROBES])
    if any(prefix + rest.ids[:-1] != ids for rest, ids in zip(rests, rows, strict=True)):
        return Prompt((), prompt)
    return Prompt(tuple(prefix), tail)


def _last_border(borders: list[npt.NDArray[np.intp]], after: int, last: int) -> int:
    """Return the last border in (after, last] of the first kind that has one, else `last`."""
    for kind in borders:
        fitting = kind[(kind > after) & (kind <= last)]
        if len(fitting):
            return int(fitting[-1])
    return last


def encode_texts(tokenizer: FastTokenizer, texts: Sequence[str]) -> list[Int32Array]:
    """Return each text's token ids, (L,) int32, with what the tokenizer itself appends."""
    ids: list[Int32Array] = []
    for part in divide(texts, SLICE):
        encodings = tokenizer.encode_batch_fast(part)
        ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
    return ids


def count_ids(tokenizer: FastTokenizer) -> int:
    """Return how many rows the embedding table of a model needs for every id there is."""
    plain = tokenizer.get_vocab_size(with_added_tokens=False)
    return max(plain, 1 + max(tokenizer.get_added_tokens_decoder(), default=0))


def load_tokenizer(folder: Path) -> FastTokenizer:
    """Return the folder's tokenizer, which neither cuts nor pads. Raises ModelLoadError."""
    tokenizer = _read(folder)
    tokenizer.no_truncation()  # a saved setting would cut, or pad, behind our back
    tokenizer.no_padding()
    return tokenizer


def _read(folder: Path) -> FastTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            raise ModelLoadError(
                f"{folder} has vocab.json and merges.txt but no tokenizer.json, which alone says "
                f"that a text ends with {END_TOKEN}; copy the model's tokenizer.json beside them"
            )
        raise ModelLoadError(f"{folder} has no tokenizer.json; download the model again")
    try:
        return FastTokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelLoadError(f"{path} cannot be read ({error}); download it again") from error
