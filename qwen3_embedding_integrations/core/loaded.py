"""LoadedModel: one copy of a model's weights and the engine that runs them, whatever computes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import ModelLoadError
from .checkpoint import Architecture, content_hash, weight_files
from .config import EngineConfig
from .engine import Engine
from .memory import Room, return_freed
from .pairs import PairTokenizer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .model import Computed

T = TypeVar("T", Tokenizer, PairTokenizer)


@dataclass(frozen=True, eq=False)
class LoadedModel(Generic[T]):
    """One copy of the weights, the engine that runs them, and what they are."""

    config: EngineConfig  # with device, dtype and max_batch_tokens resolved
    folder: Path
    architecture: Architecture
    tokenizer: T
    engine: Engine
    computed: tuple[Computed, ...]  # by each copy of the model
    stamps: tuple[tuple[Path, int, int], ...]  # each weight file's size and time when it was read
    rooms: tuple[Room, ...] = ()  # what each device has room for, where that is known
    lora: str | None = None  # what tells the adapter in the weights from any other

    def __post_init__(self) -> None:
        return_freed()  # what reading the files and making the tokenizer took meanwhile

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused."""
        return self.engine.is_closed

    @property
    def quantization(self) -> str | None:
        """What the contract says of its weights."""
        return self.config.quantization

    @cached_property
    def content_hash(self) -> str:
        """What tells this model from any other, see `checkpoint.content_hash`.

        Raises ModelLoadError when the files have changed since they were loaded.
        """
        if stamps_of(self.folder) != self.stamps:
            raise ModelLoadError(
                f"the files in {self.folder} have changed since the model was loaded, so its "
                "identity is unknown; load it again"
            )
        return content_hash(self.folder, self.architecture)


def stamps_of(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return each weight file's size and time."""
    stats = [(path, path.stat()) for path in weight_files(folder)]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
