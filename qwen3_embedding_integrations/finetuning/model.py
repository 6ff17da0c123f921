"""The model in training: sentence-transformers around transformers' Qwen3 with PEFT's LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ..contract import Encoder, Vectors
from ..core.prompts import format_queries
from ..errors import NonFiniteOutputError
from ..evaluation import Results, measure_pairs, measure_ranking, rank_documents, score_pairs
from .config import FinetuneConfig
from .data import Dataset, PairSet


def build_model(config: FinetuneConfig, folder: Path) -> SentenceTransformer:
    """Return the model with a new adapter, which changes nothing yet.

    The modules are set here, not by the folder's modules.json: a merged checkpoint may have none,
    and sentence-transformers would then take the mean of all tokens.
    """
    transformer: Any = Transformer(
        str(folder),
        model_kwargs={"dtype": getattr(torch, config.dtype), "attn_implementation": "sdpa"},
        max_seq_length=config.length,
    )
    width = int(transformer.model.config.hidden_size)
    transformer.model = add_adapter(transformer.model, config)
    if config.gradient_checkpointing:
        transformer.model.activation_checkpointing_enable()
    modules: list[torch.nn.Module] = [transformer, Pooling(width, "lasttoken"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu" if config.device == "cpu" else None)


def add_adapter(model: Any, config: FinetuneConfig) -> PeftModel:
    """Return the model with LoRA as the config asks; all but the adapter is frozen."""
    lora = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.projections),
        revision=config.revision,
    )
    with warnings.catch_warnings():  # peft 0.21.2 asks transformers 5.23 by a name that goes
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        peft_model = cast(PeftModel, get_peft_model(model, lora))
    # PEFT has put the weights' folder there, a cache of this machine.
    peft_model.peft_config["default"].base_model_name_or_path = config.model
    return peft_model


def trainable_line(model: PeftModel) -> str:
    """Return how many parameters are trained, as PEFT prints it."""
    trainable, total = model.get_nb_trainable_parameters()
    share = 100 * trainable / total
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    model.save_pretrained(str(folder), save_embedding_layers=False)  # else PEFT asks the hub


class TrainedEncoder:
    """What the evaluation asks of an encoder, from the model in training."""

    def __init__(self, model: SentenceTransformer, config: FinetuneConfig) -> None:
        self.model, self.config = model, config

    @property
    def adapter(self) -> PeftModel:
        """The model as PEFT knows it."""
        return cast(Any, self.model[0]).model

    def encode_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> Vectors:
        """Return unit vectors, (N, W) float32, under the run's instruction."""
        return self.encode_documents(
            format_queries(queries, instruction or self.config.task_instruction)
        )

    def encode_documents(self, documents: Sequence[str]) -> Vectors:
        """Return unit vectors, (N, W) float32. Raises NonFiniteOutputError."""
        size = self.config.mini_batch_size
        vectors = self.model.encode(list(documents), batch_size=size, show_progress_bar=False)
        vectors = np.asarray(vectors, np.float32)
        if not np.isfinite(vectors).all():
            raise NonFiniteOutputError("the training diverged; lower learning_rate")
        return vectors

    def measure(self, dataset: Dataset) -> Results:
        """Return the results on a dataset, with the model as it is now."""
        encoder = cast(Encoder, self)  # only the two methods above are called
        instruction = self.config.task_instruction
        if isinstance(dataset, PairSet):
            scores = score_pairs(encoder, dataset, instruction=instruction)
            return measure_pairs(dataset, scores)
        return measure_ranking(dataset, rank_documents(encoder, dataset))
