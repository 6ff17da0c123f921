"""The verb `rerank`: the lines of standard input, best first."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..core.config import RerankerConfig
from ..errors import InputError
from ..options import MACHINE, JsonOption, Options, print_json, takes


@takes(
    "revision",
    "lora",
    *MACHINE,
    model="Hub id or folder of a reranker.",
    instruction="What makes a document right for a query.",
    max_length="Tokens of query and document together at most.",
    on_too_long="truncate or error.",
)
def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    options: Options,
    top_n: Annotated[int | None, typer.Option(min=1, help="Documents shown; all of them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sort the lines of standard input, one document each, by how well they answer a query."""
    from ..reranker import Qwen3Reranker

    documents = [line.rstrip("\n") for line in sys.stdin]  # splitlines() would split at U+2028 too
    if not documents:
        raise InputError("no documents on standard input; give one a line")
    with Qwen3Reranker(RerankerConfig.from_options(**options)) as reranker:
        best_first = reranker.rerank(query, documents, top_n=top_n)
    if as_json:
        print_json([one._asdict() for one in best_first])
        return
    for one in best_first:
        sys.stdout.write(f"{one.score:.4f}\t{one.document}\n")
