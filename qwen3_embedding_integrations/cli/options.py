"""The options that several verbs take, and where verbs write."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import ConfigError

out = Console()
err = Console(stderr=True)

StoreName = StrEnum("StoreName", ["chroma", "qdrant"])
Role = StrEnum("Role", ["document", "query"])

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder, or 'tiny' (offline, for trying).")
]
DimensionsOption = Annotated[int | None, typer.Option(help="Width of the vectors, 32 and up.")]
InstructionOption = Annotated[str | None, typer.Option(help="What queries are for.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, mps, cuda, cuda:N or cuda:all.")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizationOption = Annotated[str | None, typer.Option(help="int8 on a CPU, fp8 on CUDA.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
LoraOption = Annotated[str | None, typer.Option(help="A LoRA adapter's folder or hub id.")]
MaxLengthOption = Annotated[int | None, typer.Option(help="Tokens of a text at most.")]
TooLongOption = Annotated[
    str | None, typer.Option("--on-too-long", help="truncate, error or chunk_mean.")
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(help="A server that computes instead; --model is its name for the model."),
]
ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key-env", help="The environment variable with its key.")
]
StoreOption = Annotated[StoreName, typer.Option(help="Where the vectors live.")]
LocationOption = Annotated[str, typer.Option(help="A folder, or the URL of a server.")]
CollectionOption = Annotated[str, typer.Option(help="The collection's name.")]
KeywordsOption = Annotated[
    Path | None, typer.Option(help="The file of the keyword index; beside a local collection.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines.")]

INDEX_OPTIONS = (
    "model", "dimensions", "instruction", "device", "dtype", "quantization", "revision",
    "lora", "base_url", "api_key_env",
)  # fmt: skip
DEFAULT_LOCATION = "qwen3-index"
DEFAULT_COLLECTION = "documents"


def given(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the encoder's options that were given on the command line."""
    return {name: arguments[name] for name in names if arguments[name] is not None}


def check_place(path: Path) -> None:
    """Raise ConfigError where no file can be written, before anything is computed for it."""
    if path.is_dir() or not path.parent.is_dir():
        what = (
            "is a folder" if path.is_dir() else f"would stand in {path.parent}, which is not there"
        )
        raise ConfigError(f"{path} {what}; give a file's name in a folder that exists")


def print_json(value: object) -> None:
    """Write JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()  # who watches through a pipe waits for it
