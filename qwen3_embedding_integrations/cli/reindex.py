"""The verb `reindex`: a collection under other options, without an hour of downtime."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import (
    DEFAULT_COLLECTION,
    DEFAULT_LOCATION,
    INDEX_OPTIONS,
    ApiKeyOption,
    BaseUrlOption,
    CollectionOption,
    DeviceOption,
    DimensionsOption,
    DtypeOption,
    InstructionOption,
    JsonOption,
    LocationOption,
    LoraOption,
    ModelOption,
    QuantizationOption,
    RevisionOption,
    StoreName,
    StoreOption,
    err,
    given,
    out,
    print_json,
)


def reindex(
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
    lora: LoraOption = None,
    base_url: BaseUrlOption = None,
    api_key_env: ApiKeyOption = None,
    storage: Annotated[
        str | None, typer.Option(help="float16, int8 or binary, on a Qdrant server.")
    ] = None,
    back_to: Annotated[
        str | None, typer.Option(help="Make this version the current one again, and no more.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build a collection anew with another model or width beside the old one, then swap.

    Searches go on meanwhile. With --dimensions alone the stored vectors are cut, without a model.
    """
    from ..stores import make_current
    from ..stores import reindex as rebuild

    options = given(locals(), *INDEX_OPTIONS)
    if back_to is not None:
        if options or storage:
            named = ", ".join([*options, *(["storage"] if storage else [])])
            raise ConfigError(f"--back-to makes nothing anew; leave out {named}")
        make_current(str(store), location, collection, back_to)
        out.print(f"{collection!r} is {back_to!r} now", markup=False)
        return
    if not options and not storage:
        raise ConfigError("nothing is to change; give --model, --dimensions or --storage")
    with err.status("reading the collection") as status:
        report = rebuild(
            str(store),
            location,
            collection,
            storage=storage,  # type: ignore[arg-type]  # checked there
            on_progress=lambda done: status.update(f"{done.written} rows written"),
            **options,
        )
    if as_json:
        print_json(asdict(report))
        return
    how = f"{report.encoded} encoded anew" if report.encoded else "stored vectors cut"
    out.print(
        f"{report.new} is current: {report.rows} rows, {how}; {report.agreement:.1%} of the old "
        f"neighbours are the new ones. {report.old} is kept: --back-to makes it current again",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
