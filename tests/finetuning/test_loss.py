"""The loss of retrieval, beside one written out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qwen3_embedding_integrations import EncoderConfig
from qwen3_embedding_integrations.core.checkpoint import locate_model
from qwen3_embedding_integrations.evaluation import RetrievalSet
from qwen3_embedding_integrations.finetuning.lessons import FilteredInfoNCE, retrieval_lessons
from qwen3_embedding_integrations.finetuning.model import build_model
from tests.finetuning.lessons import retrieval_config

WIDTH = 12


def written_out(queries, documents, present, answers, margin, temperature) -> float:
    """Return the mean of -log softmax, every document looked at by itself."""
    losses = []
    for n, query in enumerate(queries):
        cosines = [
            float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in documents
        ]
        total = math.exp(cosines[n] / temperature)
        for m, cosine in enumerate(cosines):
            is_negative = present[m] not in answers[n] and cosine <= cosines[n] + margin
            total += math.exp(cosine / temperature) if m != n and is_negative else 0.0
        losses.append(math.log(total) - cosines[n] / temperature)
    return float(np.mean(losses))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_answers_and_likely_answers_are_no_negatives(tmp_path, size):
    """Known answers anywhere in the batch, and what lies above the margin, do not count.

    Whatever the mini batch.
    """
    rng = np.random.default_rng(0)
    config = retrieval_config(
        tmp_path, mini_batch_size=size, false_negative_margin=0.2, temperature=0.1
    )
    documents = torch.tensor(rng.integers(0, 12, (30, 3)))  # few: many stand in several rows
    answers = [torch.tensor(sorted({int(row[0]), int(rng.integers(12))})) for row in documents]
    folder = locate_model(EncoderConfig(model="tiny").engine)
    loss = FilteredInfoNCE(build_model(config, folder), config, documents, answers)
    rows = [4, 17, 2, 9, 28, 11, 5]
    vectors = [torch.tensor(rng.normal(size=(7, WIDTH)), dtype=torch.float64) for _ in range(4)]
    found = loss.calculate_loss([[one] for one in vectors], torch.tensor(rows))
    present = documents[rows].T.flatten().tolist()
    known = [set(answers[row].tolist()) for row in rows]
    stacked = torch.cat(vectors[1:]).numpy()
    expected = written_out(vectors[0].numpy(), stacked, present, known, 0.2, 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    unfiltered = written_out(vectors[0].numpy(), stacked, present, [set()] * 7, 9.0, 0.1)
    assert abs(unfiltered - expected) > 0.01  # the filter did something


def test_a_mini_batch_changes_memory_alone(tmp_path):
    """GradCache, at every width, gives the gradients of the whole batch in one forward."""
    dataset = RetrievalSet(
        "set",
        {f"d{n}": f"document about matter {n}, at some length" for n in range(12)},
        {f"q{n}": f"what is matter {n}" for n in range(6)},
        {f"q{n}": {f"d{n}": 1, f"d{n + 6}": 1} for n in range(6)},
    )
    negatives = {f"q{n}": [f"d{(n + 1) % 6}"] for n in range(6)}
    folder = locate_model(EncoderConfig(model="tiny").engine)
    gradients = []
    for size in (2, 64):
        config = retrieval_config(tmp_path, mini_batch_size=size, negatives=1, dropout=0.0)
        torch.manual_seed(3)
        model = build_model(config, folder)
        rows, loss = retrieval_lessons(model, config, dataset, negatives, [256, 32])
        batch = rows.to_dict()
        assert all(text.startswith("Instruct: ") for text in batch["query"])
        assert not any(text.startswith("Instruct") for text in batch["document0"])
        features = [model.preprocess(batch[name]) for name in ("query", "document0", "document1")]
        model.train()
        loss(features, torch.tensor(batch["label"])).backward()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert len(rows) == 12  # each of two answers is a row
    assert gradients[0].abs().max() > 1e-4
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max()
