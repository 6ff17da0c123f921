"""What this machine is: processor, cores, flags and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
PACKAGES = ("qwen3-embedding-integrations", "torch", "tokenizers", "numpy")


def describe(command: str, *, packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Return date, command, processor, its cores and flags, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "processor": facts.get("model name", platform.processor()),
        "family_model": [facts.get("cpu family"), facts.get("model")],
        "cores": os.cpu_count(),
        "flags": {name: name in flags for name in FLAGS},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
