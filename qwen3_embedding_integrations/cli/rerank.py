"""The verb `rerank`: the lines of standard input, best first."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..core.config import RerankerConfig
from ..errors import InputError
from .options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    LoraOption,
    QuantizationOption,
    RevisionOption,
    given,
    print_json,
)


def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    top_n: Annotated[int | None, typer.Option(min=1, help="Documents shown; all of them.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a reranker.")] = None,
    revision: RevisionOption = None,
    lora: LoraOption = None,
    instruction: Annotated[
        str | None, typer.Option(help="What makes a document right for a query.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of query and document together at most.")
    ] = None,
    on_too_long: Annotated[str | None, typer.Option(help="truncate or error.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sort the lines of standard input, one document each, by how well they answer a query."""
    from ..reranker import Qwen3Reranker

    arguments = locals()
    options = given(
        arguments, *(name for name in RerankerConfig.option_names() if name in arguments)
    )
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
