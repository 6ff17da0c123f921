"""Qwen3's exact strings for queries and reranker pairs; an encoder's documents are bare.

Source: model card of Qwen/Qwen3-Embedding-0.6B (revision 97b0c614), `config_sentence_transformers
.json` of the same revision, and QwenLM/Qwen3-Embedding @ f4ad0c4: a space after "Instruct:", none
after "Query:". The reranker's: model card of Qwen/Qwen3-Reranker-0.6B (its Transformers usage, not
its vLLM one, whose text differs).
"""

from __future__ import annotations

from collections.abc import Sequence

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
DOCUMENT_TEMPLATE = "{document}"
END_TOKEN = "<|endoftext|>"


def query_prompt(instruction: str) -> str:
    """Return what stands before a query."""
    return f"Instruct: {instruction}\nQuery:"


def format_queries(queries: Sequence[str], instruction: str) -> list[str]:
    """Return each query as the model was trained to read it."""
    prompt = query_prompt(instruction)
    return [prompt + query for query in queries]


# A reranker reads RERANK_PREFIX + "<Instruct>: …\n<Query>: …\n<Document>: …" + RERANK_SUFFIX. The
# three are tokenised apart, as the card does. The middle one is built of pieces that begin with a
# space after a colon: there the split pattern always divides, so that pieces tokenised apart have
# the ids of the whole.
RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWERS = ("yes", "no")  # the score is the first one's probability beside the second


def rerank_instruction(instruction: str) -> str:
    """Return the part of a reranker's prompt that all queries share."""
    return f"<Instruct>: {instruction}\n<Query>:"


def rerank_query(query: str) -> str:
    """Return the part that all documents of a query share."""
    return f" {query}\n<Document>:"


def rerank_document(document: str) -> str:
    """Return the part that is a document's own."""
    return f" {document}"
