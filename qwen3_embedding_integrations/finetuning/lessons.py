"""Training rows as the model reads them, hard negatives, and the loss that knows the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset as Columns
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    CoSENTLoss,
    MatryoshkaLoss,
)
from sentence_transformers.util import cos_sim
from torch import Tensor

from ..contract import Vectors
from ..core.prompts import format_queries
from ..errors import InputError
from ..evaluation import PairSet, RetrievalSet
from .config import FinetuneConfig

Lessons = tuple[Columns, torch.nn.Module]


class FilteredInfoNCE(CachedMultipleNegativesRankingLoss):
    """InfoNCE over all documents of a batch, in the memory of a mini batch (GradCache).

    No negatives of a query are: its other answers, wherever in the batch they stand, and what
    scores more than `margin` above its answer, as in Qwen3-Embedding's report (arXiv 2506.05176).
    `documents` (R, C) int64 says which document stands in each column of each row; the labels of
    a batch are its rows' numbers.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        config: FinetuneConfig,
        documents: Tensor,
        answers: Sequence[Tensor],
    ) -> None:
        size = config.mini_batch_size
        super().__init__(model, scale=1 / config.temperature, mini_batch_size=size)
        self.margin = config.false_negative_margin
        self.documents, self.answers = documents, answers

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the batch's mean of -log softmax at the row's own answer."""
        assert labels is not None
        queries = torch.cat(reps[0])  # (B, W)
        documents = torch.cat([torch.cat(column) for column in reps[1:]])  # (C B, W)
        rows: list[int] = labels.tolist()
        present = self.documents[rows].T.flatten()  # (C B,)
        total = queries.new_zeros((), dtype=torch.float32)
        for start in range(0, len(rows), self.mini_batch_size):
            part = rows[start : start + self.mini_batch_size]
            own = torch.arange(start, start + len(part), device=queries.device)
            cosines = cos_sim(queries[own], documents).float()  # (b, C B)
            known = torch.stack([torch.isin(present, self.answers[row]) for row in part])
            highest = cosines.detach().gather(1, own[:, None]) + self.margin
            masked = known.to(queries.device) | (cosines.detach() > highest)
            masked.scatter_(1, own[:, None], False)
            logits = (cosines * self.scale).masked_fill(masked, -torch.inf)
            loss = F.cross_entropy(logits, own, reduction="sum") / len(rows)
            if with_backward:
                loss.backward()
                loss = loss.detach()
            total = total + loss
        return total


def pair_lessons(
    model: SentenceTransformer, config: FinetuneConfig, train: PairSet, widths: list[int]
) -> Lessons:
    """Return rows of two texts, both with the instruction, and the loss of their labels."""
    texts = {"sentence1": train.first, "sentence2": train.second}
    columns = {one: format_queries(side, config.task_instruction) for one, side in texts.items()}
    labels = [label / train.scale for label in train.labels]
    loss: torch.nn.Module = ContrastiveLoss(model)
    if config.loss_name == "cosent":
        loss = CoSENTLoss(model, scale=1 / config.temperature)
    return Columns.from_dict({**columns, "label": labels}), _at_widths(model, loss, widths)


def retrieval_lessons(
    model: SentenceTransformer,
    config: FinetuneConfig,
    train: RetrievalSet,
    negatives: dict[str, list[str]],
    widths: list[int],
) -> Lessons:
    """Return a row of each query and answer, with the query's negatives, and their loss."""
    number = {id_: n for n, id_ in enumerate(train.documents)}
    right = {
        id_: [one for one, grade in judged.items() if grade > 0]
        for id_, judged in train.relevant.items()
    }
    rows = [(query, [one, *negatives[query]]) for query, found in right.items() for one in found]
    queries = [train.queries[query] for query, _ in rows]
    columns: dict[str, Any] = {"query": format_queries(queries, config.task_instruction)}
    for n in range(1 + config.negatives):
        columns[f"document{n}"] = [train.documents[documents[n]] for _, documents in rows]
    columns["label"] = list(range(len(rows)))
    numbers = torch.tensor([[number[one] for one in documents] for _, documents in rows])
    answers = [torch.tensor([number[one] for one in right[query]]) for query, _ in rows]
    loss = FilteredInfoNCE(model, config, numbers, answers)
    return Columns.from_dict(columns), _at_widths(model, loss, widths)


def choose_negatives(
    config: FinetuneConfig, train: RetrievalSet, queries: Vectors, documents: Vectors
) -> dict[str, list[str]]:
    """Return each query's hard negatives: the file's own, then the nearest, then any.

    Not among the nearest are those as near as the farthest answer, less the margin. The vectors,
    (Q, W) and (D, W), are those of the untuned model, in the dataset's order.
    """
    rng = np.random.default_rng(config.seed)
    ids, number = list(train.documents), {id_: n for n, id_ in enumerate(train.documents)}
    chosen: dict[str, list[str]] = {}
    for (query, judged), vector in zip(train.relevant.items(), queries, strict=True):
        cosines = documents @ vector  # (D,)
        farthest = min(cosines[number[one]] for one, grade in judged.items() if grade > 0)
        cosines[cosines >= farthest - config.mining_margin * abs(farthest)] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: config.negatives + len(judged)]
        mined = [ids[n] for n in nearest if np.isfinite(cosines[n])]
        spare = [ids[n] for n in rng.permutation(len(ids))[: config.negatives + len(judged)]]
        own = [one for one, grade in judged.items() if grade <= 0]
        others = [one for one in dict.fromkeys(mined + spare) if one not in judged]
        chosen[query] = (own + others)[: config.negatives]
        if len(chosen[query]) < config.negatives:
            raise InputError(
                f"{train.name}: {len(chosen[query])} documents do not answer query {query!r}, "
                f"negatives is {config.negatives}; lower it"
            )
    return chosen


def _at_widths(
    model: SentenceTransformer, loss: torch.nn.Module, widths: list[int]
) -> torch.nn.Module:
    """Return the mean of the loss at every width, so that cut vectors work too."""
    if len(widths) == 1:
        return loss
    return MatryoshkaLoss(model, loss, widths, [1 / len(widths)] * len(widths))
