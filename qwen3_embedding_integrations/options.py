"""The options that several verbs take, and where verbs write."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .errors import ConfigError

out = Console()
err = Console(stderr=True)

Verb = Callable[..., None]
Options = dict[str, Any]  # those of `takes` that were given on the command line
Place = tuple[str, str, str]  # store, location, collection
StoreName = StrEnum("StoreName", ["chroma", "qdrant"])
Role = StrEnum("Role", ["document", "query"])

# Of EncoderConfig, or RerankerConfig: the type of a value, and what it is for.
CONFIG_OPTIONS: dict[str, tuple[Any, str]] = {
    "model": (str, "Hub id, folder, or 'tiny' (offline, for trying)."),
    "dimensions": (int, "Width of the vectors, 32 and up."),
    "instruction": (str, "What queries are for."),
    "device": (str, "auto, cpu, mps, cuda, cuda:N or cuda:all."),
    "dtype": (str, "auto, float32, bfloat16 or float16."),
    "quantization": (str, "int8 on a CPU, fp8 on CUDA."),
    "revision": (str, "Branch, tag or commit of a hub model."),
    "lora": (str, "A LoRA adapter's folder or hub id."),
    "max_length": (int, "Tokens of a text at most."),
    "on_too_long": (str, "truncate, error or chunk_mean."),
    "on_empty": (str, "Empty texts: error or embed."),
    "base_url": (str, "A server that computes instead; --model is its name for the model."),
    "api_key_env": (str, "The environment variable with its key."),
}
MACHINE = ("device", "dtype", "quantization")
INDEX = (  # what a collection's vectors depend on, and who computes them
    "model", "dimensions", "instruction", *MACHINE, "revision", "lora", "base_url", "api_key_env",
)  # fmt: skip

KeywordsOption = Annotated[
    Path | None, typer.Option(help="The file of the keyword index; beside a local collection.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
StoreOption = Annotated[StoreName, typer.Option(help="Where the vectors live.")]
LocationOption = Annotated[str, typer.Option(help="A folder, or the URL of a server.")]
CollectionOption = Annotated[str, typer.Option(help="The collection's name.")]
DEFAULT_COLLECTION = "documents"


def _option(name: str, kind: Any, default: Any = None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


PLACE = [
    _option("store", StoreOption, StoreName.chroma),
    _option("location", LocationOption, "qwen3-index"),
    _option("collection", CollectionOption, DEFAULT_COLLECTION),
]


def takes(*names: str, **helps: str) -> Callable[[Verb], Verb]:
    """Return what gives a verb these of CONFIG_OPTIONS in place of its parameter `options`.

    The verb gets the values that were given, by name. `helps` are names with a help of their own.
    In place of a parameter `place` come --store, --location and --collection.
    """
    help_of = {name: CONFIG_OPTIONS[name][1] for name in names} | helps
    chosen = [
        _option(name, Annotated[CONFIG_OPTIONS[name][0] | None, typer.Option(help=said)])
        for name, said in help_of.items()
    ]
    added = {"options": chosen, "place": PLACE}

    def decorate(verb: Verb) -> Verb:
        own = inspect.signature(verb, eval_str=True).parameters

        @wraps(verb)
        def run(**arguments: Any) -> None:
            options = {name: arguments.pop(name) for name in help_of}
            if "place" in own:
                arguments["place"] = tuple(str(arguments.pop(one.name)) for one in PLACE)
            verb(**arguments, options=given(options, *options))

        parameters: list[Parameter] = []
        for one in own.values():
            parameters += added.get(one.name) or [one.replace(kind=Parameter.KEYWORD_ONLY)]
        # What typer makes the command line of.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def given(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the options of these names that were given on the command line."""
    return {name: arguments[name] for name in names if arguments[name] is not None}


def check_place(path: Path) -> None:
    """Raise ConfigError where no file can be written, before anything is computed for it."""
    if path.is_dir() or not path.parent.is_dir():
        what = (
            "is a folder" if path.is_dir() else f"would stand in {path.parent}, which is not there"
        )
        raise ConfigError(f"{path} {what}; give a file's name in a folder that exists")


def say(text: str, *, to: Console = out) -> None:
    """Write a text as it is: no markup, no colours, no line ends but its own."""
    to.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Write JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()  # who watches through a pipe waits for it
