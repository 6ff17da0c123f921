"""Qwen3-Embedding's exact strings for queries; documents are encoded bare.

Source: model card of Qwen/Qwen3-Embedding-0.6B (revision 97b0c614), `config_sentence_transformers
.json` of the same revision, and QwenLM/Qwen3-Embedding @ f4ad0c4: a space after "Instruct:", none
after "Query:".
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
