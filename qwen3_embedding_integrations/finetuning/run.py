"""One fine-tuning, from files to an adapter; begun or resumed."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.checkpoint import locate_model, read_architecture, read_quantization, weight_files
from ..core.config import EngineConfig
from ..core.prompts import DOCUMENT_TEMPLATE, END_TOKEN, format_queries
from ..core.streaming import divide
from ..core.tokenizer import SLICE, Tokenizer
from ..errors import ConfigError, needs
from ..evaluation import Interval, PairSet, find_intervals
from .checkpoints import newest_whole, write_whole
from .config import FinetuneConfig
from .data import Dataset, Material, read_material

if TYPE_CHECKING:
    from .lessons import Lessons
    from .model import TrainedEncoder

log = logging.getLogger(__name__)
RECORD, STATE, NEGATIVES, CURVES = "finetune.json", "run.json", "negatives.json", "curves.png"
PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "datasets")
DECISIVE = ("ndcg@10", "average_precision", "spearman")  # the first of these that dev has
Metrics = dict[str, dict[str, Interval]]  # of dev and test, by name


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What a fine-tuning came to."""

    folder: Path  # the adapter: EncoderConfig(lora=...) serves it
    trainable: str  # how many parameters, as PEFT prints it
    steps: int
    best_step: int  # whose weights these are
    decided_by: str  # the metric of dev
    before: Metrics  # of the untuned model
    after: Metrics
    dropped: tuple[str, ...]  # training rows left out, and where else they are
    num_cut: int  # texts of all sets with more than max_length tokens, which were read to there
    seconds: float  # of this call

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""

        def plain(metrics: Metrics) -> dict[str, Any]:
            return {
                name: {metric: one._asdict() for metric, one in found.items()}
                for name, found in metrics.items()
            }

        metrics = {"before": plain(self.before), "after": plain(self.after)}
        return {**asdict(self), **metrics, "folder": str(self.folder)}


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> FinetuneReport:
    """Learn an adapter and write it to `config.out` in PEFT's layout, with finetune.json beside it.

    `resume` goes on from the newest whole checkpoint of an unfinished run of the same options and
    data, and ends in the weights of a run that was never interrupted. `on_progress` is told step,
    steps, loss and metrics. Raises ConfigError, InputError for bad data, ModelLoadError.
    """
    started = time.perf_counter()
    _check_packages()
    folder, widths = _check_model(config)
    material = read_material(config)
    num_cut = _count_cut(config, Tokenizer(folder), material)
    work = _open(Path(config.out).expanduser(), config, material, resume=resume)
    from transformers import set_seed

    from .model import TrainedEncoder, build_model, save_adapter, trainable_line
    from .trainer import make_trainer

    set_seed(config.seed)
    encoder = TrainedEncoder(build_model(config, folder), config)
    log.info("%s", trainable_line(encoder.adapter))
    before = _measure(encoder, material)
    decisive = next(one for one in DECISIVE if one in before["dev"])
    lessons = _lessons(config, material.train, encoder, widths, work)
    trainer = make_trainer(encoder, lessons, material.held["dev"], decisive, work, on_progress)
    trainer.train(resume_from_checkpoint=newest_whole(work))
    save_adapter(encoder.adapter, work.parent)
    report = FinetuneReport(
        folder=work.parent,
        trainable=trainable_line(encoder.adapter),
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step or 0,
        decided_by=decisive,
        before=before,
        after=_measure(encoder, material),
        dropped=material.dropped,
        num_cut=num_cut,
        seconds=time.perf_counter() - started,
    )
    _write_record(config, report, material, trainer.state.log_history)
    shutil.rmtree(work)
    return report


def _check_model(config: FinetuneConfig) -> tuple[Path, list[int]]:
    """Return the model's folder and the widths to train. Raises ConfigError, ModelLoadError."""
    folder = locate_model(EngineConfig(model=config.model, revision=config.revision))
    widths = config.widths(read_architecture(folder).hidden_size)
    if read_quantization(folder) is not None:
        raise ConfigError(f"{config.model} has int8 weights; give the model they were made of")
    weight_files(folder)  # raises where there are none: an exported folder, say
    Tokenizer(folder)  # raises for one that ends texts otherwise than the model was trained on
    return folder, widths


def _count_cut(config: FinetuneConfig, tokenizer: Tokenizer, material: Material) -> int:
    """Return how many texts of all sets are too long to be read whole; name that in a warning."""
    texts = [
        text for one in (material.train, *material.held.values()) for text in _texts(config, one)
    ]
    lengths = [len(ids) for part in divide(texts, SLICE) for ids in tokenizer.encode(part)]
    if num_cut := sum(length > config.length for length in lengths):
        log.warning(
            "%d of %d texts have more than max_length=%d tokens, instructions included, up to %d, "
            "and are cut, in training as in measuring",
            num_cut,
            len(texts),
            config.length,
            max(lengths),
        )
    return num_cut


def _texts(config: FinetuneConfig, dataset: Dataset) -> list[str]:
    is_pairs = isinstance(dataset, PairSet)
    queries = [*dataset.first, *dataset.second] if is_pairs else [*dataset.queries.values()]
    documents = [] if is_pairs else [*dataset.documents.values()]
    return format_queries(queries, config.task_instruction) + documents


def _check_packages() -> None:
    for name in PACKAGES:
        with needs(name, extra="finetune"):
            importlib.import_module(name.replace("-", "_"))


def _open(out: Path, config: FinetuneConfig, material: Material, *, resume: bool) -> Path:
    """Return the folder of a run's checkpoints, where the run's options and data are noted."""
    work = out / "checkpoints"
    asked: dict[str, Any] = json.loads(json.dumps(asdict(config) | material.hashes))
    if (out / RECORD).exists():
        raise ConfigError(f"{out} holds a finished adapter; give another folder")
    if not resume:
        others = {path.name for path in out.iterdir()} - {work.name} if out.exists() else set()
        if others or any(work.glob("checkpoint-*")):
            raise ConfigError(f"{out} is not empty; give a new folder, or resume the run in it")
        shutil.rmtree(work, ignore_errors=True)  # of a run that ended before it learnt anything
        work.mkdir(parents=True)
        write_whole(work / STATE, json.dumps(asked, indent=2, ensure_ascii=False))
    elif not (work / STATE).is_file():
        raise ConfigError(f"{out} holds no run to resume; begin one without resume")
    begun = json.loads((work / STATE).read_text(encoding="utf-8"))
    for name in sorted(begun.keys() | asked.keys()):
        was, given = begun.get(name), asked.get(name)
        if was != given:
            raise ConfigError(
                f"{name} was {was!r} when the run in {out} began and is {given!r}; resume with "
                "what it began with, or begin in a new folder"
            )
    return work


def _measure(encoder: TrainedEncoder, material: Material) -> Metrics:
    return {name: find_intervals(encoder.measure(one)) for name, one in material.held.items()}


def _lessons(
    config: FinetuneConfig, train: Dataset, encoder: TrainedEncoder, widths: list[int], work: Path
) -> Lessons:
    from .lessons import choose_negatives, pair_lessons, retrieval_lessons

    if isinstance(train, PairSet):
        return pair_lessons(encoder.model, config, train, widths)
    path = work / NEGATIVES  # mined once: a card may find others the second time
    if not path.is_file():
        queries = encoder.encode_queries(list(train.queries.values()))
        documents = encoder.encode_documents(list(train.documents.values()))
        write_whole(path, json.dumps(choose_negatives(config, train, queries, documents)))
    negatives = json.loads(path.read_text(encoding="utf-8"))
    return retrieval_lessons(encoder.model, config, train, negatives, widths)


def _write_record(
    config: FinetuneConfig, report: FinetuneReport, material: Material, history: list[Any]
) -> None:
    """Write the curves and, last of all, what was done: a folder with it is complete."""
    untuned = report.before["dev"][report.decided_by].value
    _draw_curves(history, report.decided_by, untuned, report.folder / CURVES)
    record = {
        "config": asdict(config),
        "data": material.hashes,
        "query_template": format_queries(["{query}"], config.task_instruction)[0],
        "document_template": DOCUMENT_TEMPLATE,
        "end_token": END_TOKEN,
        "report": report.to_dict(),
        "history": history,
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_whole(report.folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False))


def _draw_curves(history: list[Any], decisive: str, untuned: float, path: Path) -> None:
    """Draw the loss, and the metric that decides, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    panels = ((left, "loss", "loss"), (right, f"eval_{decisive}", f"{decisive} of dev"))
    for axes, name, title in panels:
        points = [(one["step"], one[name]) for one in history if name in one]
        axes.plot(*zip(*points, strict=True), marker=".")
        axes.set(xlabel="step", title=title)
    right.axhline(untuned, linestyle="--", color="grey", label="untuned")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
