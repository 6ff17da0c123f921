"""The verbs `search`, `encode` and `demo`."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..core.config import EncoderConfig
from ..errors import ConfigError
from ..options import (
    INDEX,
    JsonOption,
    KeywordsOption,
    Options,
    Place,
    Role,
    check_place,
    err,
    out,
    print_json,
    say,
    takes,
)


@takes(*(name for name in INDEX if name != "dimensions"))
def search(
    text: Annotated[str, typer.Argument(help="The question.")],
    place: Place,
    options: Options,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 5,
    keywords: KeywordsOption = None,
    dense_only: Annotated[bool, typer.Option(help="By vectors alone, without keywords.")] = False,
    rerank: Annotated[
        str | None, typer.Option(help="A reranker for the first hundred: hub id or folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find documents by meaning and by words, with the options they were indexed with.

    What a reference in the question names (第1079条, § 12, an error code) comes first.
    """
    from ..hybrid import HybridStore
    from ..search import Qwen3Retriever
    from ..sharing import shared_reranker
    from ..stores import keywords_path, open_store

    with err.status("loading the model"):
        source = open_store(*place, options, create=False)
        words = keywords_path(*place[1:], keywords)
        if words is not None and words.is_file() and not dense_only:
            source = source.with_keywords(words)
        reranker = shared_reranker(rerank) if rerank else None
    with closing(source.store):
        index = source.store.keywords if isinstance(source.store, HybridStore) else None
        retriever = Qwen3Retriever(source.store, source.encoder, keywords=index, reranker=reranker)
        hits = retriever.search(text, limit=limit)
    if as_json:
        rows = [{**hit.facts, "score": round(hit.score, 6), "text": hit.text} for hit in hits]
        print_json(rows)
        return
    table = Table(title=Text(text), title_justify="left")
    for column in ("score", "source", "text"):
        table.add_column(column, overflow="fold")
    for hit in hits:
        where = f"{hit.facts.get('source', '')} #{hit.facts.get('position', 0)}"
        snippet = hit.text if len(hit.text) <= 240 else hit.text[:240] + "…"
        table.add_row(f"{hit.score:.3f}", Text(where), Text(snippet))
    out.print(table)


@takes(*INDEX, "max_length", "on_too_long")
def encode(
    output: Annotated[Path, typer.Option(help="vectors.npy or vectors.jsonl.")],
    options: Options,
    role: Annotated[Role, typer.Option(help="Queries carry the instruction.")] = Role.document,
) -> None:
    """Encode the lines of standard input, one text each, to a .npy array or JSON lines."""
    import numpy as np

    from ..sharing import shared_encoder

    if output.suffix not in {".npy", ".jsonl"}:
        raise ConfigError(f"--output is {output}; end it in .npy or .jsonl")
    check_place(output)
    texts = [line.rstrip("\n") for line in sys.stdin]  # splitlines() would split at U+2028 too
    with shared_encoder(EncoderConfig.from_options(**options)) as encoder:
        encode_lines = encoder.encode_queries if role is Role.query else encoder.encode_documents
        vectors = encode_lines(texts)
    if output.suffix == ".npy":
        np.save(output, vectors)
    else:
        with output.open("w", encoding="utf-8") as file:
            for line, vector in zip(texts, vectors.tolist(), strict=True):
                row = {"text": line, "vector": vector}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    say(f"{len(vectors)} x {vectors.shape[1]} float32 in {output}")


def demo() -> None:
    """Index real texts and answer five questions through all four doors, offline."""
    from ..demo import DOORS, load_texts, run_door

    texts = load_texts()
    out.print(
        f"{len(texts)} texts (articles of the Chinese Civil Code, English help articles) and the "
        "[bold]tiny[/] model: small, for trying; use Qwen/Qwen3-Embedding-0.6B for real search."
    )
    results = [run_door(door, texts) for door in DOORS]
    for answers in zip(*(result.answers for result in results), strict=True):
        found = answers[0].found
        out.print(f"\n[bold]{answers[0].question}[/]")
        out.print(f"  [cyan]{found.id}[/]  {' '.join(found.text.split())[:100]}…", highlight=False)
        marks = [
            f"{result.door} " + ("[green]✓[/]" if answer.is_right else f"[red]{answer.found.id}[/]")
            for result, answer in zip(results, answers, strict=True)
        ]
        out.print("  " + "   ".join(marks), highlight=False)
    times = ", ".join(f"{result.door} {result.index_s:.1f} s" for result in results)
    out.print(f"\nEmbedded, stored and searched through four doors: {times}.", highlight=False)
    if num_wrong := sum(not one.is_right for result in results for one in result.answers):
        err.print(f"{num_wrong} answers were not the expected ones")
        raise typer.Exit(1)
