"""What is trained: the right ids, the right token, the right weights, the published count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from qwen3_embedding_integrations import EncoderConfig
from qwen3_embedding_integrations.core.checkpoint import locate_model
from qwen3_embedding_integrations.core.prompts import format_queries
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.finetuning import FinetuneConfig
from qwen3_embedding_integrations.finetuning.config import SIMILARITY
from qwen3_embedding_integrations.finetuning.model import (
    TrainedEncoder,
    add_adapter,
    build_model,
    trainable_line,
)
from tests.checkpoints import SHAPE_06B
from tests.oracle import largest_difference

TEXTS = [
    "花呗怎么还款", " leading and trailing ", "", "line\nbreaks\t", "a 🚀 é e\u0301", "1234567890",
    "<|endoftext|> inside <|im_end|>", "long " * 90,
]  # fmt: skip
CONFIG = FinetuneConfig(train="a.tsv", out="adapter", task="pairs", model="tiny", device="cpu")


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate_model(EncoderConfig(model="tiny").engine)


@pytest.fixture(scope="module")
def model(folder):
    return build_model(CONFIG, folder)


def test_the_model_in_training_reads_our_ids(model, folder):
    """sentence-transformers gives every text, cut ones too, the ids our own tokenizer gives it."""
    tokenizer = Tokenizer(folder)
    texts = TEXTS + format_queries(TEXTS, SIMILARITY)
    features = model.preprocess(texts)
    for row, mask, ids in zip(
        features["input_ids"], features["attention_mask"], tokenizer.encode(texts), strict=True
    ):
        expected = tokenizer.cut(ids, CONFIG.length) if len(ids) > CONFIG.length else ids
        assert row[mask.bool()].tolist() == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_untrained_adapter_gives_our_encoders_vectors(model, tiny, side):
    """Before the first step the vectors are the encoder's own, on whichever side rows are padded.

    Queries with the instruction, documents without.
    """
    model.tokenizer.padding_side = side
    encoder = TrainedEncoder(model, CONFIG)
    texts = [text for text in TEXTS if text.strip()][:-1]  # the last is cut
    queries = encoder.encode_queries(texts)
    ours = tiny.encode_queries(texts, instruction=SIMILARITY)
    assert largest_difference(queries, ours) < 1e-5
    assert largest_difference(encoder.encode_documents(texts), tiny.encode_documents(texts)) < 1e-5
    model.tokenizer.padding_side = "right"


def test_only_the_adapter_learns(model):
    """Every weight that has a gradient is LoRA's, in q, k and v of each layer."""
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(names) == 3 * 3 * 2
    assert all("lora_" in name and name.split(".self_attn.")[1][0] in "qkv" for name in names)


def test_the_published_number_of_parameters(capsys):
    """At the shape of Qwen3-Embedding-0.6B, PEFT itself prints our line: 1,605,632 are trained."""
    config = AutoConfig.for_model(**SHAPE_06B)
    with torch.device("meta"):
        model = add_adapter(AutoModel.from_config(config), CONFIG)
    model.print_trainable_parameters()
    line = "trainable params: 1,605,632 || all params: 597,382,144 || trainable%: 0.2688"
    assert trainable_line(model) == line
    assert capsys.readouterr().out.strip() == line


def test_gradient_checkpoints_change_no_gradient(folder):
    """Activations computed twice give the adapter the gradients of those that were kept."""
    gradients = []
    for keeps in (False, True):
        torch.manual_seed(1)
        options = {"train": "a", "out": "b", "task": "pairs", "model": "tiny", "device": "cpu"}
        one = build_model(FinetuneConfig(**options, gradient_checkpointing=keeps), folder)
        one.train()
        torch.manual_seed(2)  # of dropout
        one(one.preprocess(TEXTS))["sentence_embedding"][:, 0].sum().backward()
        weights = [weight for weight in one.parameters() if weight.requires_grad]
        gradients.append(np.concatenate([weight.grad.flatten().numpy() for weight in weights]))
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-6)
