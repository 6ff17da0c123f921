"""The texts that backends are asked with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..core.prompts import WEB_SEARCH, query_prompt

# Short, of several lengths, languages and kinds: the first lines of the model card's documents, a
# text that overflowed float16 in the 8B (QwenLM/Qwen3-Embedding#164), marks and accents.
DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "import os\nimport sys",
    "学习编程最好的方法是多写代码，并阅读优秀的开源项目。",
    "北京是中国的首都。Café naïve résumé — 東京",
    "hello world",
)
QUERIES = ("What is the capital of China?", "Explain gravity", "如何学习编程？")
OTHER_INSTRUCTION = "Given a programming question, retrieve code that answers it"
# Nothing in common but their first token.
SAME_BEGINNING = (
    "The capital of China is Beijing.",
    "The cat sleeps under the warm stove all day.",
)

PASSAGE = (
    "the river runs past the old mill and under the stone bridge to the sea while the wind moves "
    "slow clouds over green fields and small white houses"
)
# As long as each other, so that lengths do not tell the texts apart.
HEADS = ("the bank lends money to the farmer and so ", "the cat plays music in the garden and so ")
TAILS = (" and so the bank lends money to the farmer", " and so the cat plays music in the garden")
NUM_TAIL_WORDS_UNTIL_DIFFERENT = 6  # from the end: "bank", "cat"


class Reading(NamedTuple):
    """A string that a backend may make of a query, or of any text, instead of the right one."""

    detail: str
    template: str  # with {instruction} and {text}

    def of(self, text: str, instruction: str) -> str:
        """Return the string for this text."""
        return self.template.replace("{instruction}", instruction).replace("{text}", text)


RIGHT_QUERY = Reading("", query_prompt("{instruction}") + "{text}")
# What other clients send for a query.
QUERY_READINGS = (
    Reading('a space after "Query:"', "Instruct: {instruction}\nQuery: {text}"),
    Reading('no space after "Instruct:"', "Instruct:{instruction}\nQuery:{text}"),
    Reading("a space instead of the newline", "Instruct: {instruction} Query:{text}"),
    Reading(
        'a space instead of the newline, another after "Query:"',
        "Instruct: {instruction} Query: {text}",
    ),
    Reading("an empty line before Query:", "Instruct: {instruction}\n\nQuery:{text}"),
    Reading("the instruction without its labels", "{instruction}\n{text}"),
    Reading("no instruction: queries are read as documents", "{text}"),
    Reading('"query: ", which is E5\'s', "query: {text}"),
    Reading('"Query: " alone', "Query: {text}"),
)
# What a server may make of any text, a whole query string included.
TEXT_READINGS = (
    Reading("the query's prompt before every text", query_prompt(WEB_SEARCH) + "{text}"),
    Reading(
        'a query\'s prompt before every text, with a space after "Query:"',
        query_prompt(WEB_SEARCH) + " {text}",
    ),
    Reading("a space before every text", " {text}"),
    Reading('"passage: " before every text, which is E5\'s', "passage: {text}"),
    Reading('"query: " before every text, which is E5\'s', "query: {text}"),
)


def query_strings(queries: Sequence[str] = QUERIES, instruction: str = WEB_SEARCH) -> list[str]:
    """Return the queries as the model was trained to read them."""
    return [RIGHT_QUERY.of(query, instruction) for query in queries]


class LongTexts(NamedTuple):
    """A long text, and the same with another end and with another beginning."""

    text: str
    other_end: str
    other_beginning: str


def long_texts(num_words: int) -> LongTexts:
    """Return texts of `num_words` words, 18 at least, each about a token."""
    words = PASSAGE.split()
    middle = " ".join((words * (num_words // len(words) + 1))[: num_words - 18])
    head, tail = HEADS[0], TAILS[0]
    return LongTexts(head + middle + tail, head + middle + TAILS[1], HEADS[1] + middle + tail)
