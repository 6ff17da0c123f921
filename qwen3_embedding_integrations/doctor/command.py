"""The verb `doctor`: is this backend right? A table, or JSON; exit status 0, 1 or 2."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..options import MACHINE, JsonOption, Options, err, out, print_json, takes
from .report import REMEDIES, Diagnosis

if TYPE_CHECKING:
    from rich.console import Console

CORE = "qwen3_embedding_integrations.core"  # says what is chosen and why, at INFO
COLORS = {"right": "green", "wrong": "red", "note": "yellow", "skipped": "dim"}
COMPARED = {
    "weights": "the weights at hand; every fault has a name",
    "values": "the model's published values; without the weights some faults look alike",
    "nothing": "nothing but its own answers: an unknown model may be another one",
}


@takes("dimensions", *MACHINE, "revision", "lora")
def doctor(
    options: Options,
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, folder or 'tiny'; with --base-url, the server's name for it."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server, mostly ending in /v1.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Weights to compare with: folder, hub id, 'tiny', auto or none.")
    ] = "auto",
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the server's key.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length of the long texts; default 2300.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a backend makes Qwen3-Embedding's vectors, and name what is wrong with it.

    Exits with 0 if it is right, 1 if it is wrong, 2 if it could not be asked.
    """
    from .diagnosis import MAX_TOKENS, diagnose

    how: dict[str, Any] = {
        "reference": None if reference == "none" else reference,
        "max_tokens": MAX_TOKENS if max_tokens is None else max_tokens,
    }
    with err.status("asking"):
        if base_url is None:
            if api_key_env is not None:
                raise ConfigError("--api-key-env goes with --base-url; a local model has no key")
            diagnosis = _diagnose_local(model, options, how)
        elif options:
            raise ConfigError(f"--base-url asks a server; leave out {', '.join(options)}")
        else:
            diagnosis = diagnose(base_url, model=model, api_key_env=api_key_env, **how)
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        print_diagnosis(diagnosis, out)
    raise typer.Exit(0 if diagnosis.is_right else 1)


def _diagnose_local(model: str | None, options: dict[str, Any], how: dict[str, Any]) -> Diagnosis:
    """Return the diagnosis of this machine's own encoder, with what it chose and why."""
    from ..core.config import DEFAULT_MODEL, EncoderConfig
    from ..sharing import shared_encoder
    from .diagnosis import diagnose

    said, logger = StringIO(), logging.getLogger(CORE)
    handler = logging.StreamHandler(said)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    encoder = shared_encoder(EncoderConfig.from_options(model or DEFAULT_MODEL, **options))
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    diagnosis = diagnose(encoder, **how)
    choices = said.getvalue().splitlines()
    return replace(diagnosis, machine={**diagnosis.machine, "choices": choices})


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print what was found, the remedies, and the machine's report."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{diagnosis.subject}\ncompared with: {COMPARED[diagnosis.known]}")
    table = Table("check", "", "", title=title, title_justify="left", box=SIMPLE_HEAD)
    for check in diagnosis.checks:
        fault = str(check.fault or "") + ("" if check.is_certain else ", likely")
        said = Text(f"{fault}: {check.detail}" if check.fault else check.detail)
        table.add_row(check.name, Text(check.verdict, style=COLORS[check.verdict]), said)
    console.print(table)
    if diagnosis.is_right:
        is_known = diagnosis.known != "nothing"
        verdict = "right" if is_known else "nothing wrong was found; the weights are unknown"
        console.print(Text(verdict, style="green" if is_known else "yellow"))
    for fault in diagnosis.faults:
        console.print(Text(f"{fault}: {REMEDIES[fault]}", style="red"))
    report = json.dumps(diagnosis.machine, ensure_ascii=False, indent=1)
    console.print(Text(f"\nFor a bug report:\n{report}"), soft_wrap=True)
