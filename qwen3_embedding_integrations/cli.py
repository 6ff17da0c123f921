"""`qwen3-embedding`: the command; a verb's modules are imported only when it runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from .bench.command import bench
from .core.config import EncoderConfig
from .errors import ConfigError, InputError, Qwen3EmbeddingError
from .quantize import quantize
from .rerank import rerank

if TYPE_CHECKING:
    from .contract import EmbeddingContract
    from .documents import Document
    from .stores import Store

app = typer.Typer(
    help="Qwen3-Embedding in your vector stack: index, search, encode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
contract_app = typer.Typer(help="Show or compare the facts that made vectors.")
app.add_typer(contract_app, name="contract")
for verb in (bench, quantize, rerank):
    app.command()(verb)
out = Console()
err = Console(stderr=True)

StoreName = StrEnum("StoreName", ["chroma", "qdrant"])
Role = StrEnum("Role", ["document", "query"])

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder, or 'tiny' (offline, for trying).")
]
DimensionsOption = Annotated[int | None, typer.Option(help="Width of the vectors, 32 and up.")]
InstructionOption = Annotated[str | None, typer.Option(help="What queries are for.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizationOption = Annotated[str | None, typer.Option(help="int8, on a CPU.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
MaxLengthOption = Annotated[int | None, typer.Option(help="Tokens of a text at most.")]
TooLongOption = Annotated[
    str | None, typer.Option("--on-too-long", help="truncate, error or chunk_mean.")
]
StoreOption = Annotated[StoreName, typer.Option(help="Where the vectors live.")]
LocationOption = Annotated[str, typer.Option(help="A folder, or the URL of a server.")]
CollectionOption = Annotated[str, typer.Option(help="The collection's name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines.")]

INDEX_OPTIONS = (
    "model", "dimensions", "instruction", "device", "dtype", "quantization", "revision",
)  # fmt: skip
DEFAULT_LOCATION = "qwen3-index"
DEFAULT_COLLECTION = "documents"


@app.callback()
def _prepare(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )


@app.command()
def demo() -> None:
    """Index real texts and answer five questions through all four doors, offline."""
    from .demo import DOORS, load_texts, run_door

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


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: StoreOption = StoreName.chroma,
    location: LocationOption = DEFAULT_LOCATION,
    collection: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    dimensions: DimensionsOption = None,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    revision: RevisionOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one piece of a file.")] = 512,
    text_field: Annotated[
        str | None, typer.Option(help="The CSV column or JSONL field with the text.")
    ] = None,
) -> None:
    """Read txt, md, html, pdf, docx, csv and jsonl files into a collection.

    The same file, under the same path, indexed again replaces its rows.
    """
    from .documents import find_files
    from .stores import open_store

    options = _given(locals(), *INDEX_OPTIONS)
    files = find_files(paths)
    if not files:
        raise InputError(f"nothing to index in {', '.join(map(str, paths))}")
    with err.status("loading the model"):
        target = open_store(str(store), location, collection, options, create=True)
    with closing(target):
        num_written, failures = _fill_from_files(target, files, max_tokens, text_field)
        num_rows, num_tokens = len(target), target.encoder.stats().tokens
    out.print(
        f"{len(files) - len(failures)} files, {num_written} pieces, {num_tokens:,} tokens; "
        f"{num_rows} rows in {store!s} {collection!r} at {location}",
        markup=False,
    )
    for failure in failures:
        err.print("[red]failed[/] ", end="")
        err.print(failure, markup=False, highlight=False)
    if failures:
        raise typer.Exit(1)


def _fill_from_files(
    target: Store, files: list[Path], max_tokens: int, text_field: str | None
) -> tuple[int, list[str]]:
    """Write the files' documents under a progress bar; return how many, and what failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .documents import read_documents
    from .stores import fill

    failures: list[str] = []
    read_whole: list[tuple[str, int]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err) as bar:
        read = bar.add_task("files read", total=len(files))
        written = bar.add_task("pieces written", total=None)

        def documents() -> Iterator[Document]:
            for path in files:
                num_pieces = 0
                try:
                    for document in read_documents(
                        path,
                        max_tokens=max_tokens,
                        count_tokens=target.encoder.count_tokens,
                        text_field=text_field,
                    ):
                        yield document
                        num_pieces += 1
                    read_whole.append((path.as_posix(), num_pieces))
                except InputError as error:  # one bad file does not end the others
                    failures.append(str(error))
                bar.advance(read)

        num_written = 0
        for num_documents in fill(target, documents()):
            num_written += num_documents
            bar.update(written, completed=num_written)
        for source, num_pieces in read_whole:  # what a file no longer holds goes last
            target.trim(source, num_pieces)
    return num_written, failures


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="The question.")],
    store: StoreOption = StoreName.chroma,
    location: LocationOption = DEFAULT_LOCATION,
    collection: CollectionOption = DEFAULT_COLLECTION,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 5,
    model: ModelOption = None,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the documents nearest to a question, with the options they were indexed with."""
    from .stores import open_store

    options = _given(locals(), "model", "instruction", "device", "dtype", "quantization")
    with err.status("loading the model"):
        source = open_store(str(store), location, collection, options, create=False)
    with closing(source):
        hits = source.search(source.encoder.encode_queries([text])[0], limit)
    if as_json:
        rows = [{**hit.facts, "score": round(hit.score, 6), "text": hit.text} for hit in hits]
        _print_json(rows)
        return
    table = Table(title=Text(text), title_justify="left")
    for column in ("score", "source", "text"):
        table.add_column(column, overflow="fold")
    for hit in hits:
        where = f"{hit.facts.get('source', '')} #{hit.facts.get('position', 0)}"
        snippet = hit.text if len(hit.text) <= 240 else hit.text[:240] + "…"
        table.add_row(f"{hit.score:.3f}", Text(where), Text(snippet))
    out.print(table)


@app.command()
def encode(
    output: Annotated[Path, typer.Option(help="vectors.npy or vectors.jsonl.")],
    role: Annotated[Role, typer.Option(help="Queries carry the instruction.")] = Role.document,
    model: ModelOption = None,
    dimensions: DimensionsOption = None,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    revision: RevisionOption = None,
    max_length: MaxLengthOption = None,
    on_too_long: TooLongOption = None,
) -> None:
    """Encode the lines of standard input, one text each, to a .npy array or JSON lines."""
    import numpy as np

    from .encoder import Qwen3Encoder

    if output.suffix not in {".npy", ".jsonl"}:
        raise ConfigError(f"--output is {output}; end it in .npy or .jsonl")
    options = _given(locals(), *INDEX_OPTIONS, "max_length", "on_too_long")
    texts = [line.rstrip("\n") for line in sys.stdin]  # splitlines() would split at U+2028 too
    with Qwen3Encoder(EncoderConfig.from_options(**options)) as encoder:
        encode_lines = encoder.encode_queries if role is Role.query else encoder.encode_documents
        vectors = encode_lines(texts)
    if output.suffix == ".npy":
        np.save(output, vectors)
    else:
        with output.open("w", encoding="utf-8") as file:
            for line, vector in zip(texts, vectors.tolist(), strict=True):
                row = {"text": line, "vector": vector}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    out.print(f"{len(vectors)} x {vectors.shape[1]} float32 in {output}", markup=False)


@contract_app.command("show")
def show_contract(
    store: StoreOption = StoreName.chroma,
    location: Annotated[str | None, typer.Option(help="A collection's folder or URL.")] = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    dimensions: DimensionsOption = None,
    instruction: InstructionOption = None,
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
) -> None:
    """Print the contract of a model under these options or, with --location, of a collection."""
    options = _given(locals(), "model", "dimensions", "instruction", "dtype", "revision")
    if location is None:
        _print_json(_contract_of(options).to_dict())
    elif options:
        raise ConfigError(f"--location shows what is stored; leave out {', '.join(options)}")
    else:
        _print_json(_stored_contract(store, location, collection).to_dict())


@contract_app.command("diff")
def diff_contract(
    location: LocationOption = DEFAULT_LOCATION,
    store: StoreOption = StoreName.chroma,
    collection: CollectionOption = DEFAULT_COLLECTION,
    model: ModelOption = None,
    dimensions: DimensionsOption = None,
    instruction: InstructionOption = None,
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a collection's contract with a model's; exit with 1 if their vectors differ."""
    options = _given(locals(), "model", "dimensions", "instruction", "dtype", "revision")
    stored = _stored_contract(store, location, collection)
    differences = _contract_of(options).difference(stored)
    if as_json:
        _print_json([one._asdict() for one in differences])
    elif not differences:
        out.print(f"no difference: {stored.fingerprint}")
    else:
        table = Table("fact", "stored", "yours", "its vectors")
        for one in differences:
            verdict = "[red]cannot be mixed[/]" if one.is_hard else "differ by little"
            table.add_row(one.field, Text(str(one.stored)), Text(str(one.given)), verdict)
        out.print(table)
    if any(one.is_hard for one in differences):
        raise typer.Exit(1)


def _given(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the encoder's options that were given on the command line."""
    return {name: arguments[name] for name in names if arguments[name] is not None}


def _contract_of(options: dict[str, Any]) -> EmbeddingContract:
    from .sharing import shared_encoder

    return shared_encoder(EncoderConfig.from_options(**options)).contract


def _stored_contract(store: StoreName, location: str, collection: str) -> EmbeddingContract:
    from .stores import read_contract

    if stored := read_contract(str(store), location, collection):
        return stored
    raise InputError(f"{store!s} collection {collection!r} at {location} holds no contract")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def main() -> None:
    """Run the command; an error of ours is one line, not a traceback."""
    try:
        app()
    except Qwen3EmbeddingError as error:
        err.print(f"[red]error[/] {type(error).__name__}: ", end="")
        err.print(str(error), markup=False, highlight=False)
        sys.exit(2)
