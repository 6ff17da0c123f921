"""What `bench` measures, checked before anything is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.config import check_choice, check_range
from ..errors import ConfigError
from .peers import PEERS

RANDOM = "random"  # random weights at the true 0.6B shape
OURS = "ours"
# The arithmetic a mode stands for, with every engine's own name of it: a result is measured
# against what this machine's cores do in that arithmetic.
ARITHMETIC = {
    "int8": ("int8", "int8-blockwise", "q8_0"),
    "bfloat16": ("bfloat16",),
    "float32": ("float32",),
}
LENGTHS = (1, 16, 64, 256, 1024, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Every option of a run; checked when made (ConfigError)."""

    model: str = RANDOM  # "random", "tiny", a folder or a hub id
    modes: tuple[str, ...] = tuple(ARITHMETIC)  # ours, and the peers' in the same arithmetic
    against: tuple[str, ...] = ()  # peers, each installed in a virtual environment of its own
    num_texts: int = 96
    num_rounds: int = 3
    num_queries: int = 20
    lengths: tuple[int, ...] = ()  # of ours apart, in tokens; none: LENGTHS, all the model reads
    out: Path = Path("benchmarks/results")
    work_dir: Path | None = None  # keeps models and peers; None: removed at the end

    def __post_init__(self) -> None:
        if not self.modes:
            raise ConfigError(f"modes is empty; choose among {', '.join(ARITHMETIC)}")
        for mode in self.modes:
            check_choice("modes", mode, tuple(ARITHMETIC))
        for peer in self.against:
            check_choice("against", peer, tuple(PEERS))
            if not self.peer_modes(peer):
                raise ConfigError(
                    f"against={peer!r} runs in {', '.join(PEERS[peer].modes)}, none of which is "
                    f"modes={','.join(self.modes)}; add one of them to modes, or leave it out"
                )
        check_range("texts", self.num_texts, 1, 100_000)
        check_range("rounds", self.num_rounds, 1, 1000)
        check_range("queries", self.num_queries, 1, 10_000)
        for length in self.lengths:
            check_range("lengths", length, 1, 1_000_000)

    def peer_modes(self, peer: str) -> list[str]:
        """Return the peer's modes whose arithmetic is asked for."""
        return [mode for mode in PEERS[peer].modes if arithmetic_of(mode) in self.modes]


def arithmetic_of(mode: str) -> str:
    """Return the arithmetic that an engine's mode stands for."""
    return next(name for name, modes in ARITHMETIC.items() if mode in modes)
