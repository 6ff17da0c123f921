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
TENSOR_NAME = re.compile(r"base_model\.model\.(model\.)?(layers\.\d+\..+)\.lora_(A|B)\.weight")
OFFICIAL_NAME = re.compile(r"qwen3-(?:(?:embedding|reranker)-)?\d+(?:\.\d+)?b")
# Fields of PEFT's LoraConfig that are read below, or tell of training and origin alone. Any other
# must be empty: it changes what the adapter computes.
HARMLESS = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "layers_to_transform", "layers_pattern", "exclude_modules", "base_model_name_or_path",
    "revision", "task_type", "inference_mode", "lora_dropout", "peft_version", "auto_mapping",
    "megatron_core", "qalora_group_size",
}  # fmt: skip
# Not "pissa" and the like: these change the model's own weights as well.
ALLOWED: dict[str, tuple[Any, ...]] = {
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
        return Adapter({}, None if noted is None else noted.get("source_lora"))
    if noted is not None:
        raise ConfigError(
            f"lora={config.lora!r}: the weights in {folder} are int8 already, too coarse to add "
            f"to; quantize {noted.get('source_model')} with it (qwen3-embedding quantize --lora)"
        )
    found = _locate(config, config.lora)
    updates = _File(found, read_json(found / CONFIG), architecture, config.model).read()
    logger.info("lora: %s folded into %d projections", config.lora, len(updates))
    total = hashlib.sha256()
    for name, (a, b, scaling) in updates.items():
        total.update(f"{name} {tuple(b.shape)} {tuple(a.shape)} {scaling!r}\n".encode())
        total.update(a.contiguous().numpy().data)
        total.update(b.contiguous().numpy().data)
    return Adapter(updates, total.hexdigest()[:16])


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


@dataclass(frozen=True)
class _File:
    folder: Path
    rules: dict[str, Any]  # adapter_config.json
    architecture: Architecture
    model: str

    def refuse(self, reason: str) -> ModelLoadError:
        base = self.rules.get("base_model_name_or_path")
        return ModelLoadError(f"{self.folder} (trained on {base}) for {self.model}: {reason}")

    def read(self) -> dict[str, Update]:
        self._check_rules()
        layers, projections = range(self.architecture.num_layers), self.architecture.projections
        shapes = {f"layers.{i}.{name}": projections[name] for i in layers for name in projections}
        pairs: dict[str, dict[str, torch.Tensor]] = {}
        updates: dict[str, Update] = {}
        with open_file(self.folder / TENSORS) as file:
            for key in sorted(file.keys()):  # lora_A of each before its lora_B
                match = TENSOR_NAME.fullmatch(key)
                prefix, name, side = match.groups("") if match else ("", "", "")
                if name not in shapes or side in pairs.setdefault(name, {}):
                    raise self.refuse(
                        f"{key} belongs to none of its {len(layers)} layers' projections, or comes "
                        f"twice; an adapter of {', '.join(projections)} can be served"
                    )
                pairs[name][side] = file.get_tensor(key).float()
                if side == "B":
                    updates[name] = self._update(prefix + name, pairs[name], shapes[name])
        targets = self.rules.get("target_modules")
        bounds = [self.rules.get(name) for name in ("layers_to_transform", "exclude_modules")]
        if isinstance(targets, list) and bounds == [None, None]:  # else patterns decide
            ends = tuple(f".{str(target).removeprefix('model.')}" for target in targets)
            pairs |= {name: pairs.get(name, {}) for name in shapes if f".{name}".endswith(ends)}
        missing = [name for name in pairs if name not in updates]
        if missing or not updates:
            raise self.refuse(f"{TENSORS} is incomplete: it lacks {missing[:4] or 'all tensors'}")
        return updates

    def _check_rules(self) -> None:
        for key, value in self.rules.items():
            if not (value in ALLOWED[key] if key in ALLOWED else key in HARMLESS or not value):
                raise self.refuse(
                    f"{CONFIG} says {key}={value!r}, which cannot be folded in; plain LoRA can: "
                    'bias="none", no DoRA, no modules_to_save, no other parameters'
                )
        base = OFFICIAL_NAME.findall(str(self.rules.get("base_model_name_or_path")).lower())
        ours = OFFICIAL_NAME.findall(self.model.lower())
        if base and ours and base[-1] != ours[-1]:
            raise self.refuse(f"{base[-1]} is not {ours[-1]}; give the model it was trained on")

    def _update(self, key: str, pair: dict[str, torch.Tensor], shape: tuple[int, int]) -> Update:
        rules, numbers = self.rules, list[float]()
        for patterns, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            found = rules.get(default)
            for pattern, value in reversed((rules.get(patterns) or {}).items()):
                if re.match(rf"(.*\.)?({pattern})$", key):  # as PEFT does; the first one counts
                    found = value
            if not isinstance(found, int | float) or found <= 0:
                raise self.refuse(f"{CONFIG} says {default}={found!r} for {key}; give a number")
            numbers.append(found)
        rank, alpha = numbers
        given = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        if given != (wanted := {"A": (rank, shape[1]), "B": (shape[0], rank)}):
            raise self.refuse(f"{key} has lora_A and lora_B of {given}, not of {wanted}")
        if not all(tensor.isfinite().all() for tensor in pair.values()):
            raise self.refuse(f"{key} holds NaN or infinity: its training has diverged")
        return Update(
            pair["A"], pair["B"], alpha / (rank**0.5 if rules.get("use_rslora") else rank)
        )
