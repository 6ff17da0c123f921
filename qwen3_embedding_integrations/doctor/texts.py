"""The texts that backends are asked with."""

from __future__ import annotations

from ..core.prompts import WEB_SEARCH, format_queries

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
QUERY_STRINGS = format_queries(QUERIES, WEB_SEARCH)  # as the model was trained to read them
OTHER_INSTRUCTION = "Given a programming question, retrieve code that answers it"
# Nothing in common with the first document but the first token.
SAME_BEGINNING = "The cat sleeps under the warm stove all day."

PASSAGE = (
    "the river runs past the old mill and under the stone bridge to the sea while the wind moves "
    "slow clouds over green fields and small white houses"
)
# As long as each other, so that lengths do not tell the texts apart.
HEADS = ("the bank lends money to the farmer and so ", "the cat plays music in the garden and so ")
TAILS = (" and so the bank lends money to the farmer", " and so the cat plays music in the garden")
NUM_TAIL_WORDS_UNTIL_DIFFERENT = 6  # from the end: "bank", "cat"

# What other clients send for a query, by what is wrong with it.
QUERY_READINGS = {
    'a space after "Query:"': "Instruct: {instruction}\nQuery: {text}",
    'no space after "Instruct:"': "Instruct:{instruction}\nQuery:{text}",
    "a space instead of the newline": "Instruct: {instruction} Query:{text}",
    'a space instead of the newline, another after "Query:"': "Instruct: {instruction} "
    "Query: {text}",
    "an empty line before Query:": "Instruct: {instruction}\n\nQuery:{text}",
    "the instruction without its labels": "{instruction}\n{text}",
    "no instruction: queries are read as documents": "{text}",
    '"query: ", which is E5\'s': "query: {text}",
    '"Query: " alone': "Query: {text}",
}


def long_texts(num_words: int) -> tuple[str, str, str]:
    """Return a text of `num_words` words, 18 at least, each about a token; the same with another
    end, and with another beginning.
    """
    words = PASSAGE.split()
    middle = " ".join((words * (num_words // len(words) + 1))[: num_words - 18])
    head, tail = HEADS[0], TAILS[0]
    return head + middle + tail, head + middle + TAILS[1], HEADS[1] + middle + tail
