"""What a bug report needs to say of this machine and of what the encoder chose on it."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..bench.machine import describe
from ..encoder import Qwen3Encoder

LOADING = "qwen3_embedding_integrations.core.loading"  # says what is chosen and why, at INFO
PACKAGES = ("qwen3-embedding-integrations", "torch", "tokenizers", "safetensors", "numpy")


class _Listener(logging.Filter):
    """Notes what is said, and lets through what would have been let through without it."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(record.getMessage())
        return record.levelno >= self._level


@contextmanager
def heard_choices() -> Generator[list[str]]:
    """Yield the list that fills with what loading says it chose, and why."""
    logger = logging.getLogger(LOADING)
    level, listener = logger.level, _Listener(logger.getEffectiveLevel())
    logger.addFilter(listener)
    logger.setLevel(logging.INFO)
    try:
        yield listener.lines
    finally:
        logger.removeFilter(listener)
        logger.setLevel(level)


def describe_machine(encoder: Qwen3Encoder | None) -> dict[str, Any]:
    """Return processor, devices, free memory and versions; of an encoder, its resolved options."""
    described = describe("qwen3-embedding doctor", packages=PACKAGES)
    del described["command"], described["family_model"]
    described["free_memory_bytes"] = _free_memory()
    described["devices"] = [
        {
            "name": torch.cuda.get_device_name(index),
            "capability": list(torch.cuda.get_device_capability(index)),
            "free_memory_bytes": torch.cuda.mem_get_info(index)[0],
        }
        for index in range(torch.cuda.device_count())
    ]
    described["versions"]["cuda"] = torch.version.cuda
    if encoder is not None:
        config = encoder._loaded.config  # pyright: ignore[reportPrivateUsage]
        described["encoder"] = {
            "model": config.model,
            "lora": config.lora,
            "device": config.device,
            "dtype": config.dtype,
            "quantization": config.quantization,
            "attention": config.attention,
            "max_batch_tokens": config.max_batch_tokens,
            "contract": encoder.contract.fingerprint,
        }
    return described


def _free_memory() -> int | None:
    """Return the bytes that programs may still take; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
