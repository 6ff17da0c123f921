"""The verb rerank: the lines of standard input, best first."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from .core.config import RerankerConfig
from .errors import InputError


def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    top_n: Annotated[int | None, typer.Option(min=1, help="Documents shown; all of them.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a reranker.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="What makes a document right for a query.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    quantization: Annotated[str | None, typer.Option(help="int8, on a CPU.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of query and document together at most.")
    ] = None,
    on_too_long: Annotated[str | None, typer.Option(help="truncate or error.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Sort the lines of standard input, one document each, by how well they answer a query."""
    from .reranker import Qwen3Reranker

    given = {
        name: value for name, value in locals().items() if name in RerankerConfig.option_names()
    }
    options = {name: value for name, value in given.items() if value is not None}
    documents = [line.rstrip("\n") for line in sys.stdin]  # splitlines() would split at U+2028 too
    if not documents:
        raise InputError("no documents on standard input; give one a line")
    with Qwen3Reranker(RerankerConfig.from_options(**options)) as reranker:
        best_first = reranker.rerank(query, documents, top_n=top_n)
    if as_json:
        rows = [asdict(one) for one in best_first]
        sys.stdout.write(json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
        return
    for one in best_first:
        sys.stdout.write(f"{one.score:.4f}\t{one.document}\n")
