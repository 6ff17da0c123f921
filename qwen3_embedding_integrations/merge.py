"""A LoRA adapter merged into its model: a plain checkpoint, for every library that loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .core.config import DTYPES, EngineConfig, check_choice


def merge_lora(
    model: str,
    lora: str,
    out: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Write `model` with the adapter `lora` in its weights to the new folder `out`; return it.

    The weights keep the model's dtype unless another is given. The folder is a model of its own,
    with a contract of its own, that transformers and sentence-transformers load as well. Raises
    ConfigError when `out` exists, ModelLoadError for an adapter that is not this model's.
    """
    import torch

    from .core.checkpoint import locate_model, read_architecture
    from .core.lora import load_adapter
    from .core.pairs import find_task
    from .core.writing import check_new, merge_folder

    out = check_new(out)
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES[1:])
    config = EngineConfig(
        model=model, revision=revision, lora=lora, local_files_only=local_files_only
    )
    folder = locate_model(config)
    architecture = read_architecture(folder, find_task(folder))
    adapter = load_adapter(config, folder, architecture)
    stored = None if dtype is None else getattr(torch, dtype)
    merge_folder(folder, out, architecture=architecture, adapter=adapter, dtype=stored)
    return out


def merge(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or 'tiny'.")],
    lora: Annotated[str, typer.Argument(help="The adapter's folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the model's own.")
    ] = None,
) -> None:
    """Write a model with a LoRA adapter in its weights, as a plain checkpoint."""
    from rich.console import Console

    written = merge_lora(model, lora, out, revision=revision, dtype=dtype)  # type: ignore[arg-type]
    Console().print(f"{written}; use it as a model: --model {written}", highlight=False)
