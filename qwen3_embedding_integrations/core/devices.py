"""One device or several: what `device` names, and one config of what each of them resolves to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..errors import ConfigError
from .config import EngineConfig

ALL_CARDS = "cuda:all"


def device_names(device: str) -> list[str]:
    """Return the devices that the option names: one, or several CUDA cards.

    Raises ConfigError for a list with anything but different CUDA cards.
    """
    if device == ALL_CARDS:
        return [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]
    names = [name.strip() for name in device.split(",")]
    if len(names) > 1 and not all(name.startswith("cuda:") for name in names):
        raise ConfigError(
            f'device is {device!r}: several devices must be CUDA cards; write "cuda:0,cuda:1", or '
            f'"{ALL_CARDS}" for all that are visible'
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"device is {device!r}: a card is named twice; name each once")
    return names


def one_each(config: EngineConfig) -> list[EngineConfig]:
    """Return the config of each device by itself."""
    return [replace(config, device=name) for name in device_names(config.device)]


def together(configs: Sequence[EngineConfig]) -> EngineConfig:
    """Return one config for all devices, each resolved by itself.

    A text's vector must not depend on which card happens to be free: raises ConfigError when they
    came to different dtypes.
    """
    if len({config.dtype for config in configs}) > 1:
        found = ", ".join(f"{config.device} {config.dtype}" for config in configs)
        raise ConfigError(
            f'dtype="auto" comes to different dtypes on these devices ({found}); set dtype, to '
            '"float32" if need be, or leave the odd device out'
        )
    return replace(configs[0], device=",".join(config.device for config in configs))


def on_device(device: torch.device) -> torch.cuda.device | nullcontext[None]:
    """Return a context in which `device` is the current one, where there is such a thing.

    Triton launches on the thread's current device, whatever its tensors'.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def free_bytes(device: torch.device) -> int | None:
    """Return the memory a CUDA device has for us: free, or cached by us; None elsewhere."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
