"""sentence-transformers' trainer, with batches and checkpoints that a run resumes from exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Columns
from peft import load_peft_weights, set_peft_model_state_dict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from .checkpoints import seal
from .data import Dataset
from .model import TrainedEncoder, save_adapter

OnProgress = Callable[[dict[str, Any]], None]
WARMUP = 0.1  # of all steps
WINDOW = 32  # batches whose rows are sorted by length among themselves
NUM_LOSSES = 200  # points of the curve


class EpochSampler(DefaultBatchSampler):
    """Batches of texts of like length, in an order that seed and epoch alone decide.

    sentence-transformers' own shuffles with a generator that runs on from epoch to epoch: a run
    resumed in the third would read it in the order of the first.
    """

    def __init__(self, dataset: Columns, **options: Any) -> None:
        super().__init__(dataset, **options)
        columns = [dataset[name] for name in dataset.column_names if name != "label"]
        self._lengths = np.array([sum(map(len, texts)) for texts in zip(*columns, strict=True)])

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order, window = rng.permutation(len(self._lengths)), WINDOW * self.batch_size
        parts = [order[n : n + window] for n in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(self._lengths[part])] for part in parts])
        batches = [order[n : n + self.batch_size] for n in range(0, len(order), self.batch_size)]
        for n in rng.permutation(len(batches)):
            yield batches[n].tolist()


class DevEvaluator(BaseEvaluator):
    """The metrics on the held-out set."""

    def __init__(self, encoder: TrainedEncoder, dev: Dataset) -> None:
        super().__init__()
        self._encoder, self._dev = encoder, dev

    def __call__(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return each metric; what sentence-transformers says of model and step is not needed."""
        results = self._encoder.measure(self._dev)
        metrics = results.metrics(np.ones((1, len(results.ids))))
        return {name: float(value[0]) for name, value in metrics.items()}


class AdapterTrainer(SentenceTransformerTrainer):
    """The trainer, saving the adapter alone, in checkpoints that count once they are sealed."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_adapter(self._adapter, Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        seal(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"))

    def _load_from_checkpoint(self, checkpoint_path: str, *_: Any) -> None:
        set_peft_model_state_dict(self._adapter, load_peft_weights(checkpoint_path, device="cpu"))

    def _load_best_model(self) -> None:
        # sentence-transformers' keeps the last weights, and goes on, where it cannot read the best.
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    @property
    def _adapter(self) -> Any:
        model: Any = self.accelerator.unwrap_model(self.model)
        return model[0].model


class Reporter(TrainerCallback):
    """Tells how far the run is, and each loss and metric."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._tell = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the step."""
        self._tell({"step": state.global_step, "steps": state.max_steps})

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Tell a loss or metrics as well."""
        self._tell({**given["logs"], "step": state.global_step, "steps": state.max_steps})


def make_trainer(
    encoder: TrainedEncoder,
    lessons: tuple[Columns, torch.nn.Module],
    dev: Dataset,
    decisive: str,
    folder: Path,
    on_progress: OnProgress | None,
) -> AdapterTrainer:
    """Return a trainer whose checkpoints go to `folder`; dev's metric `decisive` is to rise."""
    config, (rows, loss) = encoder.config, lessons
    num_steps = config.epochs * -(-len(rows) // config.batch_size)
    when = "epoch" if config.checkpoint_steps is None else "steps"
    every: Any = dict.fromkeys(("save_strategy", "eval_strategy"), when)
    every |= dict.fromkeys(("save_steps", "eval_steps"), config.checkpoint_steps or 1)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        **every,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=round(WARMUP * num_steps),
        weight_decay=0.01,
        batch_sampler=EpochSampler,
        logging_steps=-(-num_steps // NUM_LOSSES),
        logging_nan_inf_filter=False,  # or a run that diverged shows a falling loss
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{decisive}",
        restore_callback_states_from_checkpoint=True,  # for how long nothing got better
        seed=config.seed,
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),  # else torch warns
        disable_tqdm=True,
    )
    vars(arguments)["_n_gpu"] = 1  # of several cards the first: GradCache knows no DataParallel
    trainer = AdapterTrainer(
        model=encoder.model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        evaluator=DevEvaluator(encoder, dev),
        callbacks=[EarlyStoppingCallback(config.patience)],
    )
    if on_progress:
        trainer.add_callback(Reporter(on_progress))
    trainer.remove_callback(PrinterCallback)
    return trainer
