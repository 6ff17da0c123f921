"""The verb `plan`: hours, devices and bytes of a corpus, before anything is encoded."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from ..core.config import EncoderConfig
from ..errors import ConfigError
from ..options import MACHINE, JsonOption, Options, out, print_json, say, takes

if TYPE_CHECKING:
    from ..plan import Plan, Rate


@takes("dimensions", "model", "lora", *MACHINE)
def plan(
    documents: Annotated[float, typer.Option(help="How many: 1e9, say.")],
    options: Options,
    tokens: Annotated[float | None, typer.Option(help="Of a document, on average.")] = None,
    size: Annotated[str, typer.Option(help="0.6B, 4B or 8B.")] = "0.6B",
    storage: Annotated[str, typer.Option(help="float32, float16, int8 or binary.")] = "float32",
    devices: Annotated[
        int | None, typer.Option(help="Cards, or machines where the rate is a CPU's; 1.")
    ] = None,
    within_hours: Annotated[
        float | None, typer.Option(help="Say how many devices are done by then.")
    ] = None,
    rates: Annotated[
        Path | None, typer.Option(help="The bench-cpu.json of `bench` on your machine.")
    ] = None,
    sample: Annotated[
        list[Path] | None,
        typer.Option(help="A file or folder like the corpus: measured here, with --model."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what embedding a corpus takes: hours, devices and bytes, with what that rests on."""
    from ..plan import assumptions, make_plan

    if devices is not None and within_hours is not None:
        raise ConfigError("--devices and --within-hours: give one, the other is what comes out")
    dimensions = options.get("dimensions")
    facts: dict[str, Any] = {"size": size, "dimensions": dimensions, "num_tokens": tokens}
    if sample:
        if tokens is not None or rates is not None:
            raise ConfigError("--sample measures length and rate: leave --tokens and --rates out")
        rate, facts = _measure(sample, options)
        found = [rate]
    else:
        found = _known(options, tokens, rates)
    facts |= {"num_documents": documents, "storage": storage, "within_hours": within_hours}
    plans = [
        make_plan(one, num_devices=1 if devices is None else devices, **facts) for one in found
    ]
    said = assumptions(facts["num_tokens"], plans)
    if as_json:
        print_json({"plans": [asdict(one) for one in plans], "assumptions": said})
    else:
        _print(plans, said)


def _known(options: Options, tokens: float | None, rates: Path | None) -> list[Rate]:
    """Return rates that were measured before; ConfigError for options without meaning then."""
    from ..plan import known_rates, read_rates

    if loaded := [name for name in options if name != "dimensions"]:
        raise ConfigError(f"{', '.join(loaded)}: only --sample loads a model; give --size instead")
    if tokens is None:
        raise ConfigError("give --tokens, the mean length of a document, or --sample")
    return known_rates() if rates is None else read_rates(rates)


def _print(plans: list[Plan], said: list[str]) -> None:
    table = Table("device", "tokens/s of one", "devices", "hours", "vectors", "index")
    for one in plans:
        table.add_row(
            one.rate.device,
            f"{one.tokens_per_s:,.0f}",
            f"{one.num_devices:,}",
            f"{one.hours:,.2f}",
            decimal(int(one.vector_bytes)),
            decimal(int(one.graph_bytes)),
        )
    out.print(table)
    say(f"{plans[0].total_tokens:,.0f} tokens. This rests on:")
    for line in said:
        say(f"- {line}")


def _measure(sample: list[Path], options: dict[str, Any]) -> tuple[Rate, dict[str, Any]]:
    from ..documents import find_files, read_documents
    from ..encoder import Qwen3Encoder
    from ..plan import measure_rate

    with Qwen3Encoder(EncoderConfig.from_options(**options)) as encoder:
        read_file = partial(read_documents, count_tokens=encoder.count_tokens)

        def read() -> list[str]:
            return [piece.text for file in find_files(sample) for piece in read_file(file)]

        rate = measure_rate(encoder, read)
        width = encoder.dimensions
    return rate, {"size": None, "dimensions": width, "num_tokens": rate.num_tokens}
