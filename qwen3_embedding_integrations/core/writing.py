"""New model folders: written under another name, renamed when they are whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import ConfigError
from .checkpoint import Architecture, read_json, weight_files
from .lora import Adapter
from .weights import load_weights, open_file

# What says how texts are read and vectors are made; README.md would tell of the source.
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*", "[0-9]_*/*.json")
# The weights' own, and what would make transformers look for an adapter.
OTHER_FILES = {"model.safetensors.index.json", "adapter_config.json"}


def check_new(out: str | Path) -> Path:
    """Return the path of a folder to be made. Raises ConfigError when it exists."""
    path = Path(out).expanduser()
    if path.exists():
        raise ConfigError(f"{path} exists already; give the name of a new folder")
    return path


@contextmanager
def new_folder(out: Path, *, like: Path) -> Generator[Path]:
    """Yield a folder with the tokenizer's and configuration files of `like`; then it is `out`.

    After an error nothing is left of it.
    """
    check_new(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        partial = Path(temporary) / out.name
        partial.mkdir()
        for path in {path for pattern in SIDE_FILES for path in like.glob(pattern)}:
            if path.name not in OTHER_FILES:
                copy = partial / path.relative_to(like)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
        yield partial
        partial.rename(out)


def merge_folder(
    folder: Path,
    out: Path,
    *,
    architecture: Architecture,
    adapter: Adapter,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the model in `folder` with the adapter in its weights, file by file, to `out`.

    Names and, unless `dtype` is given, dtypes stay as they are. Raises ModelLoadError when the
    files are not those of such a model.
    """
    # Read once as an encoder does: what it would refuse, a merged folder must not hide.
    device, pack = torch.device("cpu"), lambda _, layers: (None for _layer in layers)
    load_weights(folder, architecture, device=device, dtype=torch.bfloat16, pack=pack)
    num_bytes = 0
    with new_folder(out, like=folder) as partial:
        for path in weight_files(folder):
            with open_file(path) as file:
                metadata = file.metadata() or {"format": "pt"}
                tensors: dict[str, torch.Tensor] = {}
                for key in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                    tensor = file.get_tensor(key)
                    name = key.removeprefix("model.").removesuffix(".weight")
                    tensors[key] = adapter.fold(name, tensor).to(dtype or tensor.dtype)
            num_bytes += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, partial / path.name, metadata)
        if (index := folder / "model.safetensors.index.json").is_file():
            about: dict[str, Any] = read_json(index)
            about["metadata"] = {**about.get("metadata", {}), "total_size": num_bytes}
            (partial / index.name).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if dtype is not None:
            config = read_json(folder / "config.json")
            key = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5, and before
            config[key] = str(dtype).removeprefix("torch.")
            text = json.dumps(config, indent=2) + "\n"
            (partial / "config.json").write_text(text, encoding="utf-8")
