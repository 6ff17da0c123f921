"""A list of texts, checked, to the sequences the engine takes: blank, damaged and too long ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, TextTooLongError
from .packing import Int32Array
from .texts import MAX_NAMED, InputRules, check_texts
from .tokenizer import Prompt, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The sequences of a call."""

    sequences: list[Int32Array]  # in the order of the texts; a chunked text has several
    prefix_ids: tuple[int, ...]
    pieces: list[int] | None  # how many sequences each text has; None where each has one
    num_tokens: int
    num_truncated: int

    def pool(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return one vector per text from one per sequence: the mean by tokens, not normalised."""
        assert self.pieces is not None, "every text has one sequence: there is nothing to pool"
        weights = np.array([len(ids) - 1 for ids in self.sequences], np.float32)
        starts = np.concatenate([[0], np.cumsum(self.pieces)[:-1]])
        return np.add.reduceat(vectors * np.maximum(weights, 1)[:, None], starts, axis=0)


def prepare(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    word: str,
    rules: InputRules,
    *,
    prompt: str | None = None,
    first_index: int = 0,
) -> Inputs:
    """Return what the engine reads for these texts, with `prompt` before each of them."""
    check_texts(texts, word, rules, first_index)
    head = tokenizer.prompt(prompt) if prompt else Prompt((), "")
    num_prefix = len(head.prefix_ids)
    room = rules.max_length - num_prefix  # for the tail, the text and the end token
    num_tail = len(tokenizer.encode([head.tail])[0]) if prompt else 0
    if prompt and room <= num_tail:
        raise ConfigError(
            f"the instruction takes {num_prefix + num_tail} tokens, max_length is "
            f"{rules.max_length}: no "
            "room is left for the query; shorten the instruction or raise max_length"
        )
    sequences = tokenizer.encode([head.tail + text for text in texts] if head.tail else texts)
    return _fit(
        tokenizer,
        sequences,
        word,
        rules,
        lambda i: tokenizer.chunk(texts[i], room, head=head.tail),
        prefix_ids=head.prefix_ids,
        first_index=first_index,
    )


def prepare_ids(
    tokenizer: Tokenizer, token_ids: Sequence[Sequence[int]], rules: InputRules
) -> Inputs:
    """Return what the engine reads for texts that someone else has tokenised.

    The end token is appended where it is missing; nothing is put before them.
    """
    sequences = [
        tokenizer.complete(ids, f"token_ids[{index}]", index) for index, ids in enumerate(token_ids)
    ]
    room = rules.max_length - 1

    def chunk(i: int) -> list[Int32Array]:
        ids = sequences[i][:-1]
        starts = range(0, len(ids), room)
        return [np.append(ids[start : start + room], sequences[i][-1:]) for start in starts]

    return _fit(tokenizer, sequences, "token_ids", rules, chunk)


def _fit(
    tokenizer: Tokenizer,
    sequences: list[Int32Array],
    word: str,
    rules: InputRules,
    chunk: Callable[[int], list[Int32Array]],
    *,
    prefix_ids: tuple[int, ...] = (),
    first_index: int = 0,
) -> Inputs:
    """Return the sequences as the rules for long texts have them; `chunk` divides one by index."""
    num_prefix = len(prefix_ids)
    lengths = [len(ids) + num_prefix for ids in sequences]
    too_long = [i for i, length in enumerate(lengths) if length > rules.max_length]
    if not too_long:
        return Inputs(sequences, prefix_ids, None, sum(lengths), 0)
    if rules.on_too_long == "error":
        index = too_long[0]
        raise TextTooLongError(
            index=index + first_index, num_tokens=lengths[index], max_length=rules.max_length
        )
    if rules.on_too_long == "truncate":
        warn_of_truncation(too_long, lengths, word, rules, first_index)
        for i in too_long:
            sequences[i] = tokenizer.cut(sequences[i], rules.max_length - num_prefix)
        num_tokens = sum(len(ids) + num_prefix for ids in sequences)
        return Inputs(sequences, prefix_ids, None, num_tokens, len(too_long))
    pieces = [[ids] for ids in sequences]
    for i in too_long:
        pieces[i] = chunk(i)
    flat = [ids for part in pieces for ids in part]
    num_tokens = sum(len(ids) + num_prefix for ids in flat)
    return Inputs(flat, prefix_ids, [len(part) for part in pieces], num_tokens, 0)


def warn_of_truncation(
    too_long: list[int], lengths: list[int], word: str, rules: InputRules, first_index: int = 0
) -> None:
    """Log how many texts are cut, and which."""
    named = ", ".join(str(i + first_index) for i in too_long[:MAX_NAMED])
    more = f" and {len(too_long) - MAX_NAMED} more" if len(too_long) > MAX_NAMED else ""
    logger.warning(
        "%d of %d %s were cut to max_length=%d tokens (the longest has %d): indices %s%s",
        len(too_long),
        len(lengths),
        word,
        rules.max_length,
        max(lengths),
        named,
        more,
    )
