"""The verbs `contract show` and `contract diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..core.config import EncoderConfig
from ..errors import ConfigError
from .options import (
    DEFAULT_COLLECTION,
    DEFAULT_LOCATION,
    CollectionOption,
    DimensionsOption,
    DtypeOption,
    InstructionOption,
    JsonOption,
    LocationOption,
    LoraOption,
    ModelOption,
    RevisionOption,
    StoreName,
    StoreOption,
    given,
    out,
    print_json,
)

if TYPE_CHECKING:
    from ..contract import EmbeddingContract

contract_app = typer.Typer(help="Show or compare the facts that made vectors.")


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
    lora: LoraOption = None,
) -> None:
    """Print the contract of a model under these options or, with --location, of a collection."""
    options = given(locals(), "model", "dimensions", "instruction", "dtype", "revision", "lora")
    if location is None:
        print_json(_contract_of(options).to_dict())
    elif options:
        raise ConfigError(f"--location shows what is stored; leave out {', '.join(options)}")
    else:
        from ..stores import read_contract

        print_json(read_contract(str(store), location, collection).to_dict())


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
    lora: LoraOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a collection's contract with a model's; exit with 1 if their vectors differ."""
    from ..stores import read_contract

    options = given(locals(), "model", "dimensions", "instruction", "dtype", "revision", "lora")
    stored = read_contract(str(store), location, collection)
    differences = _contract_of(options).difference(stored)
    if as_json:
        print_json([one._asdict() for one in differences])
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


def _contract_of(options: dict[str, Any]) -> EmbeddingContract:
    from ..sharing import shared_encoder

    return shared_encoder(EncoderConfig.from_options(**options)).contract
