"""FinetuneConfig: what is learned from which file, and how; checked once, kept with the result."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..core.config import (
    DEFAULT_MODEL,
    MIN_DIMENSIONS,
    check_choice,
    check_instruction,
    check_range,
    check_type,
)
from ..core.prompts import WEB_SEARCH
from ..errors import ConfigError
from ..evaluation.evaluation import SIMILARITY

LOSSES = {"pairs": ("cosent", "contrastive"), "retrieval": ("infonce",)}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _from(default: float, lowest: float, highest: float) -> Any:
    return field(default=default, metadata={"range": (lowest, highest)})


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Every option of a fine-tuning. Frozen, JSON-able; checked when made (ConfigError)."""

    train: str
    """Pairs: a file with sentence1, sentence2 and label. Retrieval: a folder in BEIR's layout
    (FOLDER#SPLIT for one of its splits), or a .jsonl with query, positive and perhaps negative."""
    out: str
    """The adapter's folder: new, or that of a run to resume."""
    task: Literal["pairs", "retrieval"]
    """"pairs": the same meaning or not, or how similar. "retrieval": queries and documents."""
    model: str = DEFAULT_MODEL
    """A hub id, a folder, or "tiny"."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dev: str | None = None
    """What decides when to stop and which weights are kept; None: a share of `train`."""
    dev_fraction: float = _from(0.1, 0.001, 0.5)
    """That share, of the pairs or of the queries."""
    test: str | None = None
    """Measured before and after, and used for nothing else."""
    on_leak: Literal["error", "drop"] = "error"
    """Training rows whose texts are in dev or test too: named, or left out."""
    instruction: str | None = None
    """What stands before queries, and before both texts of a pair; None: the official one."""
    loss: str | None = None
    """Pairs: "cosent" (default) or "contrastive" (labels 0 and 1). Retrieval: "infonce"."""
    dimensions: tuple[int, ...] | None = None
    """Widths that are to work when cut; None: the model's own and its halves down to 32."""
    rank: int = _from(8, 1, 1024)
    """Rank of the adapter, which counts alpha / rank times."""
    alpha: int = _from(32, 1, 4096)
    dropout: float = _from(0.1, 0.0, 0.9)
    """Share of the adapter's inputs that training drops."""
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Which linear layers of every block are adapted."""
    max_length: int | None = None
    """Tokens of a text at most, instruction included; None: 64 for pairs, 512 for retrieval."""
    epochs: int = _from(15, 1, 1000)
    """Passes over the training rows at most."""
    batch_size: int = _from(64, 2, 65536)
    """Rows of a step; in retrieval each row's documents are negatives of the others."""
    mini_batch_size: int = _from(16, 1, 65536)
    """Rows of one forward in retrieval, on which alone memory depends (GradCache)."""
    learning_rate: float = _from(1e-4, 1e-8, 1.0)
    """The highest: it rises over the first tenth of the steps, then falls to 0."""
    temperature: float = _from(0.05, 0.001, 1.0)
    """Cosines are divided by it."""
    negatives: int = _from(4, 0, 64)
    """Hard negatives of each query: the file's, then mined with the untuned model."""
    mining_margin: float = _from(0.05, 0.0, 1.0)
    """None is mined whose cosine comes so close to the answer's (a share of it): it may be an
    answer that nobody marked."""
    false_negative_margin: float = _from(0.1, 0.0, 2.0)
    """For the same reason, a document of the batch so far above the answer is no negative."""
    patience: int = _from(3, 1, 1000)
    """Stop after so many evaluations without a better one."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, each with an evaluation on dev; None: one an epoch."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" takes what torch finds; CUDA_VISIBLE_DEVICES chooses a card."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights; the adapter is float32."""
    gradient_checkpointing: bool = True
    """Compute activations twice instead of keeping them: less than half the memory, an eighth more
    time on a CPU."""
    seed: int = _from(0, 0, 2**31)
    """Of everything random."""

    def __post_init__(self) -> None:
        for name in ("train", "out", "model"):
            check_type(name, getattr(self, name), str)
        check_choice("task", self.task, tuple(LOSSES))
        check_choice("loss", self.loss_name, LOSSES[self.task])
        check_choice("on_leak", self.on_leak, ("error", "drop"))
        check_choice("device", self.device, ("auto", "cpu"))
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_type("gradient_checkpointing", self.gradient_checkpointing, bool)
        check_instruction(self.task_instruction)
        check_range("max_length", self.length, 8, 32768)
        check_range("checkpoint_steps", self.checkpoint_steps or 1, 1, 10**9)
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))  # JSON has no tuples
            if "range" in one.metadata:
                lowest, highest = one.metadata["range"]
                is_number = type(value) is int or (type(value) is float and one.type == "float")
                if not is_number or not lowest <= value <= highest:
                    raise ConfigError(
                        f"{one.name} is {value!r}; choose {one.type} from {lowest} to {highest}"
                    )
        for one in self.projections or ("",):
            check_choice("projections", one, PROJECTIONS)
        for width in self.dimensions or ():
            check_range("dimensions", width, MIN_DIMENSIONS, 1_000_000)

    @property
    def loss_name(self) -> str:
        """The loss that is used."""
        return self.loss or LOSSES[self.task][0]

    @property
    def task_instruction(self) -> str:
        """The instruction that is used."""
        official = SIMILARITY if self.task == "pairs" else WEB_SEARCH
        return official if self.instruction is None else self.instruction

    @property
    def length(self) -> int:
        """The number of tokens a text is cut at."""
        return self.max_length or (64 if self.task == "pairs" else 512)

    def widths(self, hidden_size: int) -> list[int]:
        """Return the widths to train, the model's own first. Raises ConfigError."""
        halves = (hidden_size >> n for n in range(1, hidden_size.bit_length()))
        chosen = [width for width in halves if width >= MIN_DIMENSIONS]
        for width in self.dimensions or ():
            check_range("dimensions", width, MIN_DIMENSIONS, hidden_size)
        others = chosen if self.dimensions is None else self.dimensions
        return sorted({hidden_size, *others}, reverse=True)
