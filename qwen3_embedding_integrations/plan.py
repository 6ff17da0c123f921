"""How long a corpus takes to embed and how much it fills, computed from a measured rate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .core.config import MIN_DIMENSIONS, check_choice, check_range
from .errors import ConfigError, InputError

if TYPE_CHECKING:  # arithmetic waits for no torch
    from .encoder import Qwen3Encoder

RATES = Path(__file__).with_name("plan_rates.json")
BYTES_PER_NUMBER = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary": 1 / 8}
# HNSW at its usual M of 16: 2 M neighbours of 4 bytes on the lowest level, half as many on 1 / M of
# the rows above (hnswlib, Qdrant).
GRAPH_BYTES = 2 * 16 * 4 * (1 + 1 / 32)
EFFICIENCY = 0.9  # of several devices, each beside its own rate
MAX_TOKENS = 32768


class Size(NamedTuple):
    """What a forward of one of the three models costs (config.json of each)."""

    linear_flops: float  # of the matrices, per token: twice their parameters
    num_layers: int
    num_heads: int
    width: int

    def flops_per_token(self, num_tokens: float) -> float:
        """Return the operations per token of a text of so many: matrices and causal attention."""
        return self.linear_flops + self.num_layers * 4 * self.num_heads * 128 * (num_tokens + 1) / 2


SIZES = {
    "0.6B": Size(0.881e9, 28, 16, 1024),
    "4B": Size(7.267e9, 36, 32, 2560),
    "8B": Size(13.892e9, 36, 32, 4096),
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second of one device, and where the number is from."""

    device: str
    tokens_per_s: float
    num_tokens: float  # mean length of the texts it was measured with
    source: str
    size: str | None = "0.6B"  # the model it was measured with; None for the model that is planned

    def of(self, size: str | None, num_tokens: float) -> float:
        """Return the rate with another model or length: operations a second stay the same."""
        if self.size is None or size is None:
            return self.tokens_per_s
        planned = SIZES[size].flops_per_token(num_tokens)
        return self.tokens_per_s * SIZES[self.size].flops_per_token(self.num_tokens) / planned


@dataclass(frozen=True, slots=True)
class Plan:
    """A corpus on one kind of device: time and bytes."""

    rate: Rate
    tokens_per_s: float  # of one device, at the corpus's length and model
    num_devices: int
    hours: float
    total_tokens: float
    vector_bytes: float
    graph_bytes: float


def known_rates() -> list[Rate]:
    """Return the rates this package knows, each with its source."""
    return [Rate(**one) for one in json.loads(RATES.read_text(encoding="utf-8"))]


def read_rates(path: str | Path) -> list[Rate]:
    """Return this machine's rates from what `qwen3-embedding bench --json` wrote.

    Raises InputError for a file that is not that.
    """
    try:
        report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        rates = [
            Rate(
                f"{report['processor']}, {report['cores']} cores, {engine['mode']}",
                engine["documents_tokens_per_s"]["median"],
                report["num_tokens"] / report["num_documents"],
                f"{path}: {report['date']}, {report['command']}",
                _size_of(report["model"]),
            )
            for engine in report["engines"]
            if engine["engine"] == "ours"
        ]
        if not rates:
            raise ValueError("no measurement of this package")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as a report of `qwen3-embedding bench`: {error!r}"
        ) from error
    return rates


def measure_rate(
    encoder: Qwen3Encoder, read: Callable[[], list[str]], *, seconds: float = 10
) -> Rate:
    """Return this machine's rate with the encoder on the user's own texts.

    Reads and encodes all of them again and again, for so long at least; the first time is not
    counted. Raises InputError if there are none.
    """
    texts = read()
    if not texts:
        raise InputError("the sample holds no text; give files with the kind of texts to plan for")
    num_tokens = sum(map(encoder.count_tokens, texts))
    encoder.encode_documents(texts, show_progress=False)
    start, num_rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not num_rounds:
        encoder.encode_documents(read(), show_progress=False)
        num_rounds += 1
    spent = time.perf_counter() - start
    source = f"measured now: {num_rounds * len(texts)} texts read and encoded in {spent:.1f} s"
    mean = num_tokens / len(texts)
    return Rate(str(encoder.config.device), num_rounds * num_tokens / spent, mean, source, None)


def make_plan(
    rate: Rate,
    *,
    num_documents: float,
    num_tokens: float,
    size: str | None = "0.6B",
    dimensions: int | None = None,
    storage: str = "float32",
    num_devices: int = 1,
    within_hours: float | None = None,
) -> Plan:
    """Return time and bytes of `num_documents` texts of `num_tokens` each, on average.

    With `within_hours`, the least number of devices that is done by then. `size` None is the model,
    and `num_tokens` the length, that the rate was measured with; `dimensions` is needed then.
    Raises ConfigError.
    """
    for name, value in (("num_documents", num_documents), ("num_tokens", num_tokens)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}; give a number above 0")
    if num_tokens > MAX_TOKENS:
        raise ConfigError(
            f"num_tokens is {num_tokens:g}; a text holds {MAX_TOKENS} at most, so longer documents "
            "are cut into pieces: give the number and the length of the pieces"
        )
    if size is not None:
        check_choice("size", size, tuple(SIZES))
    check_choice("storage", storage, tuple(BYTES_PER_NUMBER))
    widest = SIZES[size].width if size else 1_000_000
    width = widest if dimensions is None and size else dimensions
    check_range("dimensions", width, MIN_DIMENSIONS, widest)
    total_tokens, tokens_per_s = num_documents * num_tokens, rate.of(size, num_tokens)
    device_hours = total_tokens / tokens_per_s / 3600
    if within_hours is not None:
        num_devices = _least_devices(device_hours, within_hours)
    check_range("num_devices", num_devices, 1, 1_000_000)
    speedup = num_devices * EFFICIENCY if num_devices > 1 else 1
    return Plan(
        rate,
        tokens_per_s,
        num_devices,
        device_hours / speedup,
        total_tokens,
        num_documents * (width or 0) * BYTES_PER_NUMBER[storage],
        num_documents * GRAPH_BYTES,
    )


def assumptions(num_tokens: float, plans: Sequence[Plan]) -> list[str]:
    """Return what the numbers of the plans rest on, a sentence each."""
    said = [
        f"every text is about as long as the mean, {num_tokens:g} tokens; attention makes longer "
        "ones dearer",
        "the store takes rows as fast as they come; reading is counted in what was measured now, "
        "and costs nothing elsewhere",
        f"the store's index is HNSW with M = 16: {GRAPH_BYTES:.0f} bytes a row beside its vector; "
        "texts and metadata come on top",
    ]
    if any(plan.num_devices > 1 for plan in plans):
        said.append(f"several devices reach {EFFICIENCY:.0%} of the sum of their rates")
    return said + [f"{plan.rate.device}: {plan.rate.source}" for plan in plans]


def _least_devices(device_hours: float, within_hours: float) -> int:
    if not within_hours > 0:
        raise ConfigError(f"within_hours is {within_hours}; give a number above 0")
    is_one = device_hours <= within_hours
    return 1 if is_one else math.ceil(device_hours / within_hours / EFFICIENCY)


def _size_of(model: dict[str, Any]) -> str:
    for name, size in SIZES.items():
        if (model["hidden_size"], model["num_layers"]) == (size.width, size.num_layers):
            return name
    raise ValueError(
        f"the report is about a model of width {model['hidden_size']} and {model['num_layers']} "
        f"layers; a plan needs {', '.join(SIZES)}"
    )
