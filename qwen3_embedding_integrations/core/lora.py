"""A LoRA adapter in PEFT's layout: found, checked against its model, added to the weights."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError, ModelLoadError
from .checkpoint import Architecture, locate_model, read_json, read_quantization
from .config import EngineConfig
from .weights import open_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
TENSOR_NAME = re.compile(r"base_model\.model\.(?:model\.)?(layers\.\d+\..+)\.lora_(A|B)\.weight")
OFFICIAL_NAME = re.compile(r"qwen3-(?:(?:embedding|reranker)-)?\d+(?:\.\d+)?b", re.IGNORECASE)
# Fields of PEFT's LoraConfig (0.21) that are read below, or tell of training and origin alone.
# Any other must be empty: it changes what the adapter computes.
HARMLESS = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "layers_to_transform", "layers_pattern", "exclude_modules", "base_model_name_or_path",
    "revision", "task_type", "inference_mode", "lora_dropout", "peft_version", "auto_mapping",
    "megatron_core", "qalora_group_size",
}  # fmt: skip
# Not "pissa" and the like: these change the model's own weights as well.
ALLOWED = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian"),
}
logger = logging.getLogger(__name__)


class Update(NamedTuple):
    """What is added to a projection's weight (N, K): scaling · B · A."""

    a: torch.Tensor  # (r, K) float32
    b: torch.Tensor  # (N, r) float32
    scaling: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """The updates of a model's projections, by names such as "layers.0.self_attn.q_proj"."""

    updates: dict[str, Update]
    content_hash: str | None  # equal updates, wherever they lie, are equal; None: no adapter

    def fold(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a projection's weight (N, K) with its update, in float32; without one, as it is.

        Rounding to the model's dtype comes after the sum: a small update survives it better.
        """
        if (update := self.updates.get(name)) is None:
            return weight
        return weight.float().addmm(update.b, update.a, alpha=update.scaling)


def load_adapter(config: EngineConfig, folder: Path, architecture: Architecture) -> Adapter:
    """Return the adapter that `config.lora` names, for the model in `folder`; empty without one.

    Of a folder with int8 weights it is empty too, with the hash of what was folded in before they
    were rounded. Raises ModelLoadError for an adapter of another model, and for whatever in it
    could not be folded in.
    """
    noted = read_quantization(folder)
    if config.lora is None:
        return Adapter({}, noted and noted.get("source_lora"))
    if noted is not None:
        raise ConfigError(
            f"lora={config.lora!r}: the weights in {folder} are int8 already, too coarse to add "
            f"to; quantize {noted.get('source_model')} with it (qwen3-embedding quantize --lora)"
        )
    found = _locate(config, config.lora)
    rules = read_json(found / CONFIG)
    updates = _Updates(found, rules, architecture, config.model).read()
    logger.info("lora: %s folded into %d projections", config.lora, len(updates))
    return Adapter(updates, _hash(updates))


def _locate(config: EngineConfig, lora: str) -> Path:
    found = Path(lora).expanduser()
    if not found.is_dir():
        name, _, revision = lora.partition("@")
        offline = config.local_files_only
        source = EngineConfig(model=name, revision=revision or None, local_files_only=offline)
        found = locate_model(source)
    for name in (CONFIG, TENSORS):
        if not (found / name).is_file():
            raise ModelLoadError(
                f"lora={lora!r}: {found} has no {name}; an adapter, as PEFT saves it, is {CONFIG} "
                f"and {TENSORS} (a pickled adapter_model.bin is never read). A whole model is "
                "given as model="
            )
    return found


class _Updates:
    def __init__(
        self, folder: Path, rules: dict[str, Any], architecture: Architecture, model: str
    ) -> None:
        self.folder = folder
        self.rules = rules
        self.model = model
        self.shapes = {
            f"layers.{index}.{name}": shape
            for index in range(architecture.num_layers)
            for name, shape in architecture.projections.items()
        }

    def refuse(self, reason: str) -> ModelLoadError:
        base = self.rules.get("base_model_name_or_path")
        return ModelLoadError(f"{self.folder} (trained on {base}) for {self.model}: {reason}")

    def read(self) -> dict[str, Update]:
        self._check_rules()
        pairs: dict[str, dict[str, torch.Tensor]] = {}
        unknown: list[str] = []
        with open_file(self.folder / TENSORS) as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                match = TENSOR_NAME.fullmatch(key)
                name, side = match.groups() if match else ("", "")
                if name not in self.shapes or side in pairs.setdefault(name, {}):
                    unknown.append(key)
                else:
                    pairs[name][side] = file.get_tensor(key)
        if unknown or not pairs:
            named = ", ".join(sorted(unknown)[:4]) or "no tensors at all"
            raise self.refuse(
                f"{len(unknown)} tensors belong to no projection of its "
                f"{len(self.shapes) // 7} layers ({named}); only LoRA of the q, k, v, o, gate, up "
                "and down projections can be served"
            )
        if missing := [name for name in self.shapes if self._is_target(name) and name not in pairs]:
            raise self.refuse(
                f"target_modules asks for {len(missing)} projections without tensors "
                f"({', '.join(missing[:4])}); the adapter is incomplete"
            )
        return {name: self._update(name, pairs[name]) for name in sorted(pairs)}

    def _check_rules(self) -> None:
        for key, value in self.rules.items():
            is_fine = value in ALLOWED[key] if key in ALLOWED else key in HARMLESS or not value
            if not is_fine:
                raise self.refuse(
                    f"{CONFIG} says {key}={value!r}, which cannot be folded in; plain LoRA can: "
                    'bias="none", no DoRA, no modules_to_save, no other parameters'
                )
        base = OFFICIAL_NAME.findall(str(self.rules.get("base_model_name_or_path")))[-1:]
        ours = OFFICIAL_NAME.findall(self.model)[-1:]
        if base and ours and base[0].lower() != ours[0].lower():
            raise self.refuse(f"{base[0]} is not {ours[0]}; give the model it was trained on")

    def _is_target(self, name: str) -> bool:
        """Whether PEFT surely adapts this projection; where it depends on patterns, False."""
        rules = self.rules
        targets, layers = rules.get("target_modules"), rules.get("layers_to_transform")
        if not isinstance(targets, list) or rules.get("exclude_modules"):
            return False
        chosen = [layers] if isinstance(layers, int) else layers
        is_chosen = not chosen or int(name.split(".")[1]) in chosen
        names = [str(target).removeprefix("model.") for target in targets]
        return is_chosen and any(f".{name}".endswith(f".{one}") for one in names)

    def _update(self, name: str, pair: dict[str, torch.Tensor]) -> Update:
        rank = self._by_pattern("rank_pattern", "r", name)
        alpha = self._by_pattern("alpha_pattern", "lora_alpha", name)
        outputs, inputs = self.shapes[name]
        given = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        if given != (wanted := {"A": (rank, inputs), "B": (outputs, rank)}):
            raise self.refuse(f"{name}: lora_A and lora_B are {given}, not {wanted}")
        a, b = pair["A"].float(), pair["B"].float()
        if not (a.isfinite().all() and b.isfinite().all()):
            raise self.refuse(f"{name} holds NaN or infinity: its training has diverged")
        return Update(a, b, alpha / (rank**0.5 if self.rules.get("use_rslora") else rank))

    def _by_pattern(self, patterns: str, default: str, name: str) -> float:
        """Return the rank or alpha of a projection, as PEFT finds it: the first pattern counts."""
        found: Any = self.rules.get(default)
        for pattern, value in (self.rules.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", f"model.{name}"):
                found = value
                break
        if not isinstance(found, int | float) or found <= 0:
            raise self.refuse(f"{CONFIG} gives {name} {default}={found!r}; a number above 0 is due")
        return found


def _hash(updates: dict[str, Update]) -> str:
    total = hashlib.sha256()
    for name, (a, b, scaling) in updates.items():
        total.update(f"{name} {tuple(b.shape)} {tuple(a.shape)} {scaling!r}\n".encode())
        for tensor in (a, b):
            total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()[:16]
