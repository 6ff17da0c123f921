"""A folder that `export` wrote, run by ONNX Runtime or OpenVINO; torch is not imported."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, MissingDependencyError, ModelLoadError, NonFiniteOutputError
from .checkpoint import locate_model, read_architecture
from .config import EncoderConfig, EngineConfig
from .engine import Engine, Runner
from .loaded import LoadedModel
from .packing import PackedBatch
from .streaming import Vectors
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NOTE = "export.json"
STEP = "activation_step"  # the constant of an int8 graph by which activations are rounded
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
FREE_OPTIONS = {"model", "max_batch_tokens", "max_queue_tokens", "local_files_only"}
MAX_BATCH_TOKENS = 2048
Run = Callable[[dict[str, Any]], Vectors]  # input_ids (B, S) and lengths (B,) int64 to (B, H)
Resolve = Callable[[EngineConfig], EngineConfig]
Load = Callable[[EngineConfig], LoadedModel[Tokenizer]]


@dataclass(frozen=True, eq=False)
class LoadedGraph(LoadedModel[Tokenizer]):
    """A graph that is ready to run, and what `export` noted of it."""

    note: dict[str, Any] = field(kw_only=True)

    @cached_property
    def content_hash(self) -> str:
        """That of the model it was made from: the same vectors, but for a rounding."""
        return str(self.note["contract"]["revision"])

    @property
    def quantization(self) -> str | None:
        """What the contract says of its weights."""
        return self.note["contract"]["quantization"]


def encoder_backend(config: EncoderConfig) -> tuple[Resolve, Load]:
    """Return what resolves the config and loads its model: torch's functions, or those below.

    Raises ConfigError where the model is not one for `backend`.
    """
    folder = Path(config.model).expanduser()
    made_for = read_note(folder)["format"] if (folder / NOTE).is_file() else "torch"
    if config.backend not in {"auto", made_for}:
        raise ConfigError(
            f"backend is {config.backend!r}, and {config.model} is for {made_for!r}; leave backend "
            "out, or make a folder for it: qwen3-embedding export MODEL FOLDER"
        )
    if made_for == "torch":
        from . import loading

        return loading.resolve, loading.load_model
    return resolve, load_model


def resolve(config: EngineConfig) -> EngineConfig:
    """Return the config with every "auto" replaced. Raises ConfigError for what a graph fixes."""
    for option in fields(EngineConfig):
        value = getattr(config, option.name)
        if option.name not in FREE_OPTIONS and value not in {option.default, "cpu"}:
            raise ConfigError(
                f"{option.name} is {value!r}; an exported model runs on the CPU, as it was "
                f"exported: leave {option.name} out"
            )
    budget = MAX_BATCH_TOKENS if config.max_batch_tokens == "auto" else config.max_batch_tokens
    return replace(config, device="cpu", max_batch_tokens=budget)


def load_model(config: EngineConfig) -> LoadedGraph:
    """Return the exported model, ready to run. Raises ModelLoadError, ConfigError."""
    config = resolve(config)
    folder = locate_model(config)
    note, architecture, tokenizer = read_note(folder), read_architecture(folder), Tokenizer(folder)
    made_for = note["format"]
    try:
        run = RUNTIMES[made_for](folder / GRAPHS[made_for])
    except ImportError as error:
        raise MissingDependencyError(
            error.name or made_for, extra=made_for, reason=error
        ) from error
    except Exception as error:  # neither runtime has a class of its own for a bad file
        raise ModelLoadError(f"{folder} cannot be loaded ({error}); export it again") from error
    runner = Runner(_Head(run), config.device, int(config.max_batch_tokens))
    engine = Engine(
        [runner], width=architecture.hidden_size, max_queue_tokens=config.max_queue_tokens
    )
    config = replace(config, dtype=note["contract"]["dtype"])
    logger.info("%s on %s: %s, %s", config.model, config.device, made_for, note["precision"])
    return LoadedGraph(config, folder, architecture, tokenizer, engine, (), (), note=note)


def read_note(folder: Path) -> dict[str, Any]:
    """Return what `export` noted of its folder. Raises ModelLoadError."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if note["format"] not in GRAPHS or not note["contract"]["revision"]:
            raise ValueError(note["format"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{folder / NOTE} cannot be read ({error!r}); export again") from error
    return note


class _Head:
    """Runs a batch: texts of similar length together, padded."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, batch: PackedBatch) -> Callable[[], Vectors]:
        """Run the batch; the returned function gives its vectors, (B, H) float32."""
        lengths, order = batch.lengths, np.argsort(-batch.lengths, kind="stable")
        parts: list[Vectors] = []
        rest = order
        while len(rest):
            # Attention takes the square of the longest: a text half as long waits for the next.
            num_texts = int((2 * lengths[rest] > lengths[rest[0]]).sum())
            parts.append(self._run_padded(batch.select(rest[:num_texts])))
            rest = rest[num_texts:]
        vectors = np.empty((len(batch), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        num_bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        if num_bad:
            raise NonFiniteOutputError(
                f"{num_bad} of {len(vectors)} vectors hold NaN or inf; export the model anew, in "
                "fp32"
            )
        return lambda: vectors

    def _run_padded(self, batch: PackedBatch) -> Vectors:
        num_prefix, own = len(batch.prefix_ids), batch.lengths
        input_ids = np.zeros((len(batch), num_prefix + own.max()), np.int64)
        input_ids[:, :num_prefix] = batch.prefix_ids
        input_ids[:, num_prefix:][np.arange(own.max()) < own[:, None]] = batch.input_ids
        return self._run({"input_ids": input_ids, "lengths": own.astype(np.int64) + num_prefix})


def run_onnx(path: Path, activation_levels: int | None = None) -> Run:
    """Return what runs an ONNX graph; int8 activations have so many levels on each side of zero.

    x86 processors without VNNI add two products in 16 bits, which 255 x 127 x 2 overflows in
    silence and 127 x 127 x 2 does not (ONNX Runtime's documentation, "Quantize ONNX models").
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = activation_levels or (127 if _has_exact_products() else 63)
    step = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(1 / levels, np.float32))
    options.add_initializer(STEP, step)  # in place of the graph's own
    options.log_severity_level = 3
    # Between runs its threads leave the cores to the tokenizer and to whoever else is there.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    # With the step, which the session reads.
    return lambda feed, _step=step: np.asarray(session.run(None, feed)[0])


def _has_exact_products() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    is_x86 = platform.machine() in {"x86_64", "AMD64"}
    return not is_x86 or (cpuinfo.is_file() and "vnni" in cpuinfo.read_text(errors="replace"))


def _openvino(path: Path) -> Run:
    import openvino

    # Else it computes in bfloat16 wherever the processor can.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    graph = openvino.Core().compile_model(path, "CPU", options)
    return lambda feed: graph(feed, share_outputs=False)[0]


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnx": run_onnx, "openvino": _openvino}
