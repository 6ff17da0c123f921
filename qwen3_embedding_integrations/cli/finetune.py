"""The verb `finetune`: an adapter from files, with a bar, and a table of what it gained."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import check_options
from ..errors import ConfigError
from ..options import JsonOption, Options, err, given, print_json, say, takes
from ..options import out as console

if TYPE_CHECKING:
    from ..finetuning import FinetuneReport


@takes("model")
def finetune(
    train: Annotated[str, typer.Option(help="Pairs, a retrieval .jsonl, or a BEIR FOLDER#SPLIT.")],
    out: Annotated[str, typer.Option(help="The adapter's new folder.")],
    task: Annotated[str, typer.Option(help="pairs or retrieval.")],
    options: Options,
    dev: Annotated[str | None, typer.Option(help="Decides when to stop; or a share of it.")] = None,
    test: Annotated[str | None, typer.Option(help="Measured before and after.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, any other option of FinetuneConfig; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tune a model for your pairs or queries with LoRA; EncoderConfig(lora=OUT) serves it."""
    from rich.progress import Progress

    from ..finetuning import FinetuneConfig
    from ..finetuning import finetune as run

    own = {"train": train, "out": out, "task": task, "dev": dev, "test": test}
    options |= given(own, *own) | dict(map(_parse, settings or []))
    check_options(options, [one.name for one in fields(FinetuneConfig)])
    with Progress(console=err, transient=True) as bar:
        row = bar.add_task("training", total=None)

        def show(now: dict[str, Any]) -> None:
            bar.update(row, completed=now["step"], total=now["steps"])
            if "loss" in now:
                bar.update(row, description=f"training, loss {now['loss']:.3f}")

        report = run(FinetuneConfig(**options), resume=resume, on_progress=show)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _parse(setting: str) -> tuple[str, Any]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting!r} has no =; give NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word


def _print(report: FinetuneReport) -> None:
    from rich.table import Table

    table = Table("", "metric", "untuned", "tuned")
    for name, metrics in report.after.items():
        for metric, tuned in metrics.items():
            cells = [
                f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]"
                for one in (report.before[name][metric], tuned)
            ]
            table.add_row(name, metric, *cells)
    console.print(report.trainable, table, highlight=False)
    say(
        f"{report.folder}: step {report.best_step} of {report.steps}, the best by "
        f"{report.decided_by} of dev; {len(report.dropped):,} training rows left out; "
        f"{report.seconds:,.0f} s"
    )
