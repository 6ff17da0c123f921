"""MTEBEncoder, MTEBReranker: an encoder and a reranker as mteb asks for them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import BatchedInput, PromptType
from torch.utils.data import DataLoader

from ..contract import Encoder, Vectors
from ..errors import ConfigError
from ..reranker import Qwen3Reranker, Scores

# What mteb 2.26's own wrapper (models/model_implementations/qwen3_reranker.py) asks where a task
# brings no instruction, to the letter.
RERANK_INSTRUCTION = "Given the user query, retrieval the relevant passages"
PAIRS_PER_CALL = 4096  # a task may have millions: their token ids are not all held at once
# The facts of a contract, beside the weights, that change a score.
SETTINGS = ("dimensions", "dtype", "lora", "max_length", "on_too_long", "quantization")


class MTEBEncoder(AbsEncoder):
    """Any encoder of ours as an mteb encoder, under the protocol of mteb's own Qwen3 wrapper.

    Queries, and the texts of tasks without roles, are read behind the task's instruction, as mteb
    2.26's models/model_implementations/qwen3_models.py builds it; documents are bare. The encoder's
    own instruction is not used. Raises ConfigError for an encoder that refuses empty texts, which
    public datasets hold.
    """

    def __init__(self, encoder: Encoder) -> None:
        if getattr(getattr(encoder, "config", None), "on_empty", "embed") == "error":
            raise ConfigError(
                'on_empty is "error", and public datasets hold empty texts; make the encoder with '
                'on_empty="embed"'
            )
        contract = encoder.contract
        self.encoder = encoder
        self.mteb_model_meta = _describe(
            contract.model,
            contract.revision,
            {name: getattr(contract, name) for name in SETTINGS},
            # The enumeration's member: its name as a str fails where mteb compares by identity.
            similarity_fn_name=ScoringFunction.COSINE,
        )

    def instruction_for(self, task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """Return the instruction of a task's texts in this role; None: they are read bare."""
        if prompt_type == PromptType.document:
            return None
        instruction: Any = self.get_instruction(task, prompt_type)
        if isinstance(instruction, dict):  # one for each role, and texts of no role: the first
            instruction = next(iter(instruction.values()))
        return instruction or None

    # mteb's `precision` is missing: what changes a vector is an option of the encoder.
    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> Vectors:
        """Return one unit vector per text, (N, dimensions) float32, in the order given."""
        texts = _column(inputs, "text")
        instruction = self.instruction_for(task_metadata, prompt_type)
        if instruction is None:
            return self.encoder.encode_documents(texts)
        return self.encoder.encode_queries(texts, instruction=instruction)


class MTEBReranker:
    """A Qwen3Reranker as an mteb cross-encoder, under the protocol of mteb's own wrapper.

    For reranking tasks, and retrieval tasks after their `convert_to_reranking`; where a task brings
    instructions, each query is read with its own.
    """

    def __init__(self, reranker: Qwen3Reranker) -> None:
        config = reranker.config
        self.reranker = reranker
        self.mteb_model_meta = _describe(
            config.model,
            reranker.content_hash,
            {name: getattr(config, name, None) for name in SETTINGS},
            model_type=["cross-encoder"],
        )

    def predict(
        self, inputs1: DataLoader[BatchedInput], inputs2: DataLoader[BatchedInput], **_: Any
    ) -> Scores:
        """Return one score per (query, document), (N,) float32 in [0, 1], in the order given."""
        pairs = list(zip(_column(inputs1, "text"), _column(inputs2, "text"), strict=True))
        rows_of: dict[str, list[int]] = {}
        instructions = _column(inputs1, "instruction") or [RERANK_INSTRUCTION] * len(pairs)
        for row, instruction in enumerate(instructions):
            rows_of.setdefault(instruction, []).append(row)
        scores = np.empty(len(pairs), np.float32)
        for instruction, rows in rows_of.items():
            for start in range(0, len(rows), PAIRS_PER_CALL):
                part = rows[start : start + PAIRS_PER_CALL]
                chosen = [pairs[row] for row in part]
                scores[part] = self.reranker.score_pairs(chosen, instruction=instruction)
        return scores


def _column(inputs: DataLoader[BatchedInput], name: str) -> list[str]:
    """Return a column of all batches; nothing where there is no such column."""
    return [value for batch in inputs for value in batch.get(name, ())]


def _describe(model: str, revision: str, setting: dict[str, Any], **facts: Any) -> ModelMeta:
    """Return what mteb files results under: they are reused only where all of it is equal."""
    facts |= {
        # mteb takes no name without a slash, and makes folders of both.
        "name": model if model.count("/") == 1 else f"local/{model.rsplit('/', 1)[-1]}",
        "revision": re.sub(r"[^\w.-]", "_", revision),
        "experiment_kwargs": {key: value for key, value in setting.items() if value is not None},
        "use_instructions": True,
    }
    return ModelMeta.create_empty(facts)
