"""A text as keyword terms: words, characters and pairs of them, numbers and codes as one thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .references import Reference, find_references, fold

RULES_VERSION = 1  # of the terms: an index made under other rules cannot be searched

# Scripts without spaces between words, and Hangul, whose endings cling to the words.
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"([{_DENSE}]+)|((?:(?![{_DENSE}])[^\W_])+)")
_DIGITS = re.compile(r"\d+")


class Terms(NamedTuple):
    """What a text is found by."""

    terms: list[str]  # in no order, each as often as it occurs
    references: list[Reference]


def split_text(text: str) -> Terms:
    """Return the terms and references of a text.

    Words in lower case without accents; each character and each pair of neighbours in Chinese,
    Japanese, Korean and Thai; a statute's number as one term in all notations; a code whole
    (without its separators) and in parts.
    """
    folded = fold(text)
    references = list(find_references(folded))
    numbered = [one for one in references if one.kind != "code"]
    terms = [*_reference_terms(references), *_plain_terms(_without(folded, numbered))]
    return Terms(terms, [one for one in references if one.is_exact])


def _reference_terms(references: list[Reference]) -> Iterator[str]:
    for one in references:
        if one.kind != "code":
            yield one.key
            yield from _DIGITS.findall(one.key)  # 条1079 is also found by 1079
        elif len(one.key) < one.end - one.start:  # else it is a word like others
            yield one.key


def _plain_terms(folded: str) -> Iterator[str]:
    for dense, word in _RUN.findall(folded):
        if word:
            yield word
        else:
            yield from dense
            yield from (dense[i : i + 2] for i in range(len(dense) - 1))


def _without(folded: str, references: list[Reference]) -> str:
    """Return the text without references: 第, 千 and 条 are in every article."""
    pieces: list[str] = []
    position = 0
    for one in sorted(references, key=lambda one: one.start):
        pieces.append(folded[position : one.start])
        position = max(position, one.end)
    return " ".join([*pieces, folded[position:]])
