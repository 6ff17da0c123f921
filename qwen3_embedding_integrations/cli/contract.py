"""The verbs `contract show` and `contract diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..core.config import EncoderConfig
from ..errors import ConfigError
from ..options import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    Options,
    Place,
    StoreName,
    StoreOption,
    out,
    print_json,
    takes,
)

if TYPE_CHECKING:
    from ..contract import EmbeddingContract

FACTS = ("model", "dimensions", "instruction", "dtype", "revision", "lora")

contract_app = typer.Typer(help="Show or compare the facts that made vectors.")


@contract_app.command("show")
@takes(*FACTS)
def show_contract(
    options: Options,
    store: StoreOption = StoreName.chroma,
    location: Annotated[str | None, typer.Option(help="A collection's folder or URL.")] = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
) -> None:
    """Print the contract of a model under these options or, with --location, of a collection."""
    if location is None:
        print_json(_contract_of(options).to_dict())
    elif options:
        raise ConfigError(f"--location shows what is stored; leave out {', '.join(options)}")
    else:
        from ..stores import read_contract

        print_json(read_contract(str(store), location, collection).to_dict())


@contract_app.command("diff")
@takes(*FACTS)
def diff_contract(place: Place, options: Options, as_json: JsonOption = False) -> None:
    """Compare a collection's contract with a model's; exit with 1 if their vectors differ."""
    from ..stores import read_contract

    stored = read_contract(*place)
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
