"""A model with its LoRA adapter as a plain checkpoint, for every library that loads one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from .core.config import DType, EngineConfig, check_choice
from .options import Options, say, takes

if TYPE_CHECKING:
    from .core.lora import Adapter


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

    from .core.checkpoint import locate_model, read_architecture, weight_files
    from .core.lora import load_adapter
    from .core.pairs import find_task
    from .core.quantization import CPU, INDEX, edit_json, new_folder
    from .core.weights import load_weights

    if dtype is not None:
        check_choice("dtype", dtype, get_args(DType)[1:])
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    config = EngineConfig(model=model, lora=lora, **options)
    folder, out = locate_model(config), Path(out).expanduser()
    with new_folder(out, like=folder) as partial:
        architecture = read_architecture(folder, find_task(folder))
        adapter = load_adapter(config, folder, architecture)
        # As an encoder reads it: what that would refuse is not to be written.
        load_weights(folder, architecture, device=CPU, dtype=torch.bfloat16, pack=_drop)
        files = weight_files(folder)
        num_bytes = sum(_fold(path, partial / path.name, adapter, dtype) for path in files)
        if (folder / INDEX).is_file():
            edit_json(INDEX, folder, partial, metadata={"total_size": num_bytes})
        if dtype is not None:
            # transformers 5 reads the one, older ones the other
            edit_json("config.json", folder, partial, dtype=dtype, torch_dtype=dtype)
    return out


def _fold(source: Path, target: Path, adapter: Adapter, dtype: str | None) -> int:
    """Write a file of weights with the adapter in them; return their bytes."""
    import torch
    from safetensors.torch import save_file

    from .core.weights import open_file

    with open_file(source) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {"format": "pt"}
    for key, tensor in tensors.items():
        name = key.removeprefix("model.").removesuffix(".weight")
        to = tensor.dtype if dtype is None else getattr(torch, dtype)
        tensors[key] = adapter.fold(name, tensor).to(to)
    save_file(tensors, target, metadata)
    return sum(tensor.nbytes for tensor in tensors.values())


def _drop(_: object, layers: Iterable[object]) -> Iterator[None]:
    return (None for _layer in layers)


@takes("revision")
def merge(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or 'tiny'.")],
    lora: Annotated[str, typer.Argument(help="The adapter's folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    options: Options,
    dtype: Annotated[str | None, typer.Option(help="Another than the model's own.")] = None,
) -> None:
    """Write a model with a LoRA adapter in its weights, as a plain checkpoint."""
    written = merge_lora(model, lora, out, dtype=dtype, **options)  # type: ignore[arg-type]
    say(f"{written}; use it as a model: --model {written}")
