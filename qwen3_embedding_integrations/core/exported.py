"""A folder that `export` wrote, run by ONNX Runtime or OpenVINO; torch is not imported."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, MissingDependencyError, ModelLoadError, NonFiniteOutputError
from .checkpoint import locate_model, read_architecture
from .config import EngineConfig
from .engine import Engine, Runner
from .loaded import LoadedModel
from .packing import PackedBatch
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NOTE = "export.json"
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
FREE_OPTIONS = {"model", "max_batch_tokens", "max_queue_tokens", "local_files_only"}
MAX_BATCH_TOKENS = 2048
Vectors = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Run = Callable[[Int64Array, Int64Array], Vectors]  # input_ids (B, S), lengths (B,) to (B, H)


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


def is_exported(model: str) -> bool:
    """Whether `model` is a folder that `export` wrote."""
    return (Path(model).expanduser() / NOTE).is_file()


def resolve(config: EngineConfig) -> EngineConfig:
    """Return the config with every "auto" replaced. Raises ConfigError for what a graph fixes."""
    for option in fields(EngineConfig):
        value = getattr(config, option.name)
        if option.name not in FREE_OPTIONS and value not in {option.default, "cpu"}:
            raise ConfigError(
                f"{option.name} is {value!r}; an exported model runs on the CPU, as it was "
                f"exported: leave {option.name} out"
            )
    budget = config.max_batch_tokens
    budget = MAX_BATCH_TOKENS if budget == "auto" else budget
    return replace(config, device="cpu", max_batch_tokens=budget)


def load_model(config: EngineConfig) -> LoadedGraph:
    """Return the exported model, ready to run. Raises ModelLoadError, ConfigError."""
    config = resolve(config)
    folder = locate_model(config)
    note = read_note(folder)
    architecture = read_architecture(folder)
    tokenizer = Tokenizer(folder)
    run = RUNTIMES[note["format"]](folder / GRAPHS[note["format"]])
    head = _Head(run, f"{note['format']} {note['precision']}")
    runner = Runner(head, config.device, int(config.max_batch_tokens))
    engine = Engine(
        [runner], width=architecture.hidden_size, max_queue_tokens=config.max_queue_tokens
    )
    config = replace(config, dtype=note["contract"]["dtype"])
    logger.info("%s on %s: %s, %s", config.model, config.device, note["format"], note["precision"])
    return LoadedGraph(config, folder, architecture, tokenizer, engine, (), (), note=note)


def read_note(folder: Path) -> dict[str, Any]:
    """Return what `export` noted of its folder. Raises ModelLoadError."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{folder} has no {NOTE} that can be read ({error}); a graph and what belongs to it "
            "are made by: qwen3-embedding export MODEL FOLDER"
        ) from error
    if note.get("format") not in GRAPHS:
        raise ModelLoadError(f"{folder / NOTE}: the format is {note.get('format')!r}")
    return note


class _Head:
    """Runs a batch: texts of similar length in one padded run each."""

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._name = name

    def __call__(self, batch: PackedBatch) -> Callable[[], Vectors]:
        """Run the batch; the returned function gives its vectors, (B, H) float32."""
        lengths = batch.lengths
        parts: list[tuple[npt.NDArray[np.intp], Vectors]] = []
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            # Attention takes the square of the longest: a text half as long waits for the next.
            num_texts = int((2 * lengths[order] > lengths[order[0]]).sum())
            parts.append((order[:num_texts], self._part(batch.select(order[:num_texts]))))
            order = order[num_texts:]
        vectors = np.concatenate([part for _, part in parts])
        vectors[np.concatenate([rows for rows, _ in parts])] = vectors.copy()
        if not np.isfinite(vectors).all():
            num_bad = int((~np.isfinite(vectors).all(axis=1)).sum())
            raise NonFiniteOutputError(
                f"{num_bad} of {len(vectors)} vectors hold NaN or inf in {self._name}; export the "
                "model with precision fp32"
            )
        return lambda: vectors

    def _part(self, batch: PackedBatch) -> Vectors:
        num_prefix, own = len(batch.prefix_ids), batch.lengths
        input_ids = np.zeros((len(batch), num_prefix + own.max()), np.int64)
        input_ids[:, :num_prefix] = batch.prefix_ids
        input_ids[:, num_prefix:][np.arange(own.max()) < own[:, None]] = batch.input_ids
        return self._run(input_ids, (own + num_prefix).astype(np.int64))


def _onnx(path: Path) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", extra="onnx", reason=error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Between runs its threads leave the cores to the tokenizer and to whoever else is there.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has no class of its own for what cannot be read
        raise ModelLoadError(f"{path} cannot be loaded ({error}); export it again") from error
    return lambda input_ids, lengths: session.run(
        None, {"input_ids": input_ids, "lengths": lengths}
    )[0]


def _openvino(path: Path) -> Run:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError("openvino", extra="openvino", reason=error) from error
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", options)
    except Exception as error:
        raise ModelLoadError(f"{path} cannot be loaded ({error}); export it again") from error
    return lambda input_ids, lengths: compiled({"input_ids": input_ids, "lengths": lengths})[0]


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnx": _onnx, "openvino": _openvino}
