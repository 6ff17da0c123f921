"""Which files are the model: found on the hub or on disk, checked, and told apart by content."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import ConfigError, ModelLoadError
from .config import TINY, EngineConfig

QUANT_METHOD = "qwen3-embedding-int8"
ARCHITECTURES = {"Qwen3Model", "Qwen3ForCausalLM"}
FILE_PATTERNS = ["*.json", "*.safetensors", "1_Pooling/config.json"]
# What besides the files' bytes changes a vector. Kept in indexes: never change the list.
IDENTIFYING = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "rms_norm_eps", "rope_theta")
Task = Literal["embedding", "reranking"]
MODEL_KINDS: dict[Task, str] = {"embedding": "embedding model", "reranking": "reranker"}
# What sentence-transformers' modules.json may hold, by the names that its layouts from 2.x to 6.x
# share, and what alone is done for a task.
MODULES: dict[Task, tuple[set[str], str]] = {
    "embedding": (
        {"Transformer", "Pooling", "Normalize"},
        "last-token pooling and normalisation are",
    ),
    "reranking": ({"Transformer", "LogitScore"}, 'the probability of "yes" is'),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The numbers of a Qwen3 decoder, as its config.json gives them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    is_tied: bool = True  # the output layer is the embedding

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """A layer's projections by their names in a checkpoint: (outputs, inputs)."""
        hidden, middle = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (middle, hidden),
            "mlp.up_proj": (middle, hidden),
            "mlp.down_proj": (hidden, middle),
        }


def locate_model(config: EngineConfig) -> Path:
    """Return the folder with the model's files, downloading a hub model that is not there yet."""
    is_folder = Path(config.model).expanduser().is_dir()
    if config.revision is not None and (config.model == TINY or is_folder):
        raise ConfigError(
            f"revision={config.revision!r} goes with a hub id, but model={config.model!r} is a "
            "folder; leave revision out"
        )
    if config.model == TINY:
        return Path(str(files("qwen3_embedding_integrations") / "tiny"))
    if is_folder:
        return Path(config.model).expanduser()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.model) or config.model.startswith("."):
        raise ModelLoadError(
            f"no folder {config.model!r} here, and it is no hub id (owner/name); check the path"
        )
    return _download(config)


def _download(config: EngineConfig) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                config.model,
                revision=config.revision,
                allow_patterns=FILE_PATTERNS,
                local_files_only=config.local_files_only,
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelLoadError(
            f"{config.model!r} (revision {config.revision or 'newest'}) is neither a folder here "
            f"nor a model on {constants.ENDPOINT}; check the name, the revision and, for a private "
            "model, HF_TOKEN"
        ) from error
    except Exception as error:  # the hub's client lets its HTTP library's errors through
        is_offline = config.local_files_only or constants.HF_HUB_OFFLINE
        reason = "and the network is switched off" if is_offline else f"({error})"
        raise ModelLoadError(
            f"{config.model!r} (revision {config.revision or 'newest'}) is not in the cache "
            f"{constants.HF_HUB_CACHE} and could not be downloaded from {constants.ENDPOINT} "
            f"{reason}. Three ways out: (1) let it download once, without HF_HUB_OFFLINE and "
            "local_files_only, through a mirror if need be (HF_ENDPOINT); (2) copy the model's "
            'folder here and give model="/path/to/folder"; (3) try things out with model="tiny", '
            "which needs no download"
        ) from error


def read_architecture(folder: Path, task: Task = "embedding") -> Architecture:
    """Return the model's numbers; refuse what is not a Qwen3 model for the task, and say why."""
    config = read_json(folder / "config.json")

    def refuse(reason: str) -> ModelLoadError:
        return ModelLoadError(f"{folder}: not a Qwen3 {MODEL_KINDS[task]}: {reason}")

    if config.get("model_type") != "qwen3":
        raise refuse(f"config.json says model_type={config.get('model_type')!r}, not 'qwen3'")
    named = set(config.get("architectures") or ARCHITECTURES)
    if not named & ARCHITECTURES:
        raise refuse(f"architecture {', '.join(sorted(named))}, not {' or '.join(ARCHITECTURES)}")
    for key, allowed in {
        "hidden_act": {None, "silu"},
        "attention_bias": {None, False},
        "use_sliding_window": {None, False},
    }.items():
        if config.get(key) not in allowed:
            raise refuse(f"{key}={config[key]!r} is not supported")
    if config.get("quantization_config") and read_quantization(folder) is None:
        raise refuse("its weights are quantized; give the unquantized checkpoint")
    # transformers 5 writes rope_parameters, 4.x rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise refuse(f"rope scaling {rope_type!r} is not supported")
    _check_modules(folder, task)
    try:
        return Architecture(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim", 128),
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else config["rope_theta"]),
            max_positions=config["max_position_embeddings"],
            is_tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise refuse(f"config.json lacks {error.args[0]!r}") from error


def read_quantization(folder: Path) -> dict[str, Any] | None:
    """Return what `qwen3-embedding quantize` noted of the model it made, None for any other."""
    noted = read_json(folder / "config.json").get("quantization_config") or {}
    return noted if noted.get("quant_method") == QUANT_METHOD else None


def _check_modules(folder: Path, task: Task) -> None:
    """Refuse a sentence-transformers folder that is for another task, or does it in another way."""
    kinds: list[str] = []
    if (folder / "modules.json").is_file():
        modules = cast(list[dict[str, Any]], read_json(folder / "modules.json", list))
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if task == "reranking" and "Pooling" in kinds:
        raise ModelLoadError(
            f"{folder}: modules.json pools: this is an embedding model, not a reranker; load it "
            "with Qwen3Encoder"
        )
    if task == "embedding" and "LogitScore" in kinds:
        raise ModelLoadError(
            f"{folder}: modules.json scores: this is a reranker, not an embedding model; load it "
            "with Qwen3Reranker"
        )
    allowed, supported = MODULES[task]
    if strange := [kind for kind in kinds if kind not in allowed]:
        raise ModelLoadError(
            f"{folder}: modules.json has {', '.join(strange)} after the model; only {supported} "
            "supported"
        )
    if task == "embedding" and (folder / "1_Pooling" / "config.json").is_file():
        pooling = read_json(folder / "1_Pooling" / "config.json")
        mode = pooling.get("pooling_mode", "lasttoken" if _pools_last(pooling) else "another token")
        if mode != "lasttoken":
            raise ModelLoadError(
                f"{folder}: 1_Pooling pools by {mode}; Qwen3-Embedding pools the last token"
            )


def _pools_last(pooling: dict[str, Any]) -> bool:
    modes = {key for key, value in pooling.items() if key.startswith("pooling_mode_") and value}
    return modes == {"pooling_mode_lasttoken"}


def weight_files(folder: Path) -> list[Path]:
    """Return the checkpoint's safetensors files: the shards its index names, or the one file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        paths = [folder / name for name in names]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelLoadError(
                f"{folder} lacks {len(missing)} of {len(paths)} weight files "
                f"({', '.join(missing[:4])}); download the model again"
            )
        return paths
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    others = sorted(path.name for path in folder.iterdir())
    raise ModelLoadError(
        f"{folder} has no model.safetensors (it has {', '.join(others[:8]) or 'nothing'}); pickled "
        "weights are never read: save the model with safe_serialization=True"
    )


def content_hash(folder: Path, architecture: Architecture) -> str:
    """Return what tells this model from any other: equal files, wherever they lie, are equal.

    SHA-256 over the numbers that the weights do not show, tokenizer.json and every weight file. A
    quantized folder has that of the model it was made from: the same vectors, but for a rounding.
    """
    if (noted := read_quantization(folder)) is not None:
        return str(noted["source_revision"])
    numbers = {name: getattr(architecture, name) for name in IDENTIFYING}
    total = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for path in [folder / "tokenizer.json", *weight_files(folder)]:
        total.update(f"{path.name} {_file_hash(path)}\n".encode())
    return total.hexdigest()[:16]


def _file_hash(path: Path) -> str:
    # The hub's cache names a large file by its SHA-256 and links to it: nothing to compute.
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name := path.resolve().name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, kind: type = dict) -> Any:
    """Return a file's JSON, a `kind`. Raises ModelLoadError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{path.parent} has no {path.name}; a model folder holds config.json, tokenizer.json "
            "and *.safetensors"
        ) from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise ModelLoadError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}")
    return value
