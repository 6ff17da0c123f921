"""The verb `reindex`: a collection under other options, without an hour of downtime."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import ConfigError
from ..options import INDEX, JsonOption, Options, Place, err, print_json, say, takes


@takes(*INDEX)
def reindex(
    place: Place,
    options: Options,
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

    if back_to is not None:
        if options or storage:
            named = ", ".join([*options, *(["storage"] if storage else [])])
            raise ConfigError(f"--back-to makes nothing anew; leave out {named}")
        make_current(*place, back_to)
        say(f"{place[2]!r} is {back_to!r} now")
        return
    if not options and not storage:
        raise ConfigError("nothing is to change; give --model, --dimensions or --storage")
    with err.status("reading the collection") as status:
        report = rebuild(
            *place,
            storage=storage,  # type: ignore[arg-type]  # checked there
            on_progress=lambda done: status.update(f"{done.written} rows written"),
            **options,
        )
    if as_json:
        print_json(asdict(report))
        return
    how = f"{report.encoded} encoded anew" if report.encoded else "stored vectors cut"
    say(
        f"{report.new} is current: {report.rows} rows, {how}; {report.agreement:.1%} of the old "
        f"neighbours are the new ones. {report.old} is kept: --back-to makes it current again"
    )
