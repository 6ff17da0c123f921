"""A backend's vectors beside those that the weights make, rightly and with each fault.

They are made by a plain float32 forward, layer by layer from the files, written for reading and
independent of the engine that it may be used to judge. One layer's weights are in memory at a time,
so that the 8B needs about 2 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..core.checkpoint import read_architecture
from ..core.prompts import WEB_SEARCH, query_prompt
from ..core.tokenizer import Tokenizer
from ..core.weights import tensor_readers
from .report import Check, Fault, note, right, wrong
from .subject import CLEARLY, Subject, Vectors, distances
from .texts import DOCUMENTS, QUERY_STRINGS

# 1 - cosine allowed by the arithmetic, as published: 0.99999 in float32, 0.9995 in the others.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-4, "float16": 5e-4}
# What int8 comes to, with room: 0.9975 by ours, 0.9956 by ONNX Runtime (README, Measured).
QUANTIZED = 2e-2
IM_END = "<|im_end|>"

Ids = list[int]


class Recipe(NamedTuple):
    """How a vector is made of a text: rightly, or with one fault."""

    fault: Fault | None
    detail: str
    rewrite: Callable[[str], str] = lambda text: text  # what is tokenised in its place
    change_ids: Callable[[Ids, int], Ids] = lambda ids, im_end: ids  # ids end with <|endoftext|>
    pool: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden[-1]  # (L, H) -> (H,)
    is_causal: bool = True


def _misread(detail: str, rewrite: Callable[[str], str]) -> Recipe:
    return Recipe(Fault.WRONG_TEMPLATE, detail, rewrite)


PROMPT = query_prompt(WEB_SEARCH)
RECIPES = (
    Recipe(None, ""),
    Recipe(Fault.END_MISSING, "the text's own last token is pooled",
           change_ids=lambda ids, im_end: ids[:-1] or ids),
    Recipe(Fault.END_DOUBLED, "a second <|endoftext|> is pooled",
           change_ids=lambda ids, im_end: [*ids, ids[-1]]),
    Recipe(Fault.END_WRONG, "<|im_end|> in place of <|endoftext|>",
           change_ids=lambda ids, im_end: [*ids[:-1], im_end]),
    Recipe(Fault.END_WRONG, "<|im_end|> after <|endoftext|>",
           change_ids=lambda ids, im_end: [*ids, im_end]),
    Recipe(Fault.MEAN_POOLING, "the mean of all tokens",
           pool=lambda hidden: hidden.mean(0)),
    Recipe(Fault.MEAN_POOLING, "the mean of all but the end token",
           pool=lambda hidden: hidden[: max(1, len(hidden) - 1)].mean(0)),
    Recipe(Fault.FIRST_TOKEN_POOLING, "the first token is pooled",
           pool=lambda hidden: hidden[0]),
    Recipe(Fault.NOT_CAUSAL, "tokens see those after them", is_causal=False),
    _misread('a space after "Query:"', lambda text: text.replace("\nQuery:", "\nQuery: ")),
    _misread("newlines are replaced by spaces", lambda text: text.replace("\n", " ")),
    _misread("a query's prompt is removed", lambda text: text.rpartition("\nQuery:")[2]),
    _misread("the query's prompt before every text", lambda text: PROMPT + text),
    _misread("that prompt and a space before every text", lambda text: f"{PROMPT} {text}"),
    _misread("a space before every text", lambda text: " " + text),
    _misread("\"passage: \", which is E5's, before every text", lambda text: "passage: " + text),
    _misread("\"query: \", which is E5's, before every text", lambda text: "query: " + text),
)  # fmt: skip
END_FAULTS = {Fault.END_MISSING, Fault.END_DOUBLED, Fault.END_WRONG}


def check_weights(subject: Subject, folder: Path) -> Check:
    """Whether vectors are those of the weights in `folder`, else what explains them best."""
    texts = [*DOCUMENTS, *QUERY_STRINGS[:2]]
    vectors = subject.alone(texts)
    recipes = explain(folder, texts)
    width = vectors.shape[1]
    if width > (made := recipes[0][1].shape[1]):
        detail = f"vectors have {width} dimensions, the weights make {made}"
        return wrong(Fault.OTHER_WEIGHTS, detail)
    offs = [distances(vectors, made[:, :width]) for _, made in recipes]
    best = min(range(len(offs)), key=lambda i: float(offs[i].mean()))
    nearest, off, right_off = recipes[best][0], offs[best], offs[0]
    measured = f"1 - cosine at most {right_off.max():.1e}"
    if nearest.fault is None:
        return _judge_nearly_right(subject, float(off.max()), measured)
    if off.mean() <= CLEARLY * right_off.mean() and off.max() <= QUANTIZED:
        detail = f"{nearest.detail} ({measured}, with this fault {off.max():.1e})"
        return wrong(nearest.fault, detail)
    detail = f"no known fault explains them ({measured}; nearest: {nearest.detail})"
    return wrong(Fault.OTHER_WEIGHTS, detail)


def _judge_nearly_right(subject: Subject, off: float, measured: str) -> Check:
    """Return the check of vectors that are nearer to the right ones than to any fault's."""
    # Of a server the dtype is unknown: the coarsest of the usual ones may be it.
    tolerance = TOLERANCES.get(subject.dtype or "", TOLERANCES["bfloat16"])
    if off <= (QUANTIZED if subject.quantization else tolerance):
        return right(measured)
    if off > QUANTIZED:
        return wrong(Fault.OTHER_WEIGHTS, f"{measured}: not these weights")
    if subject.dtype not in TOLERANCES:
        return note(f"{measured}: as far off as quantised weights, or as a fine-tune of these")
    return wrong(Fault.INEXACT, f"{measured}, {tolerance:.0e} allowed in {subject.dtype}")


def explain(folder: Path, texts: Sequence[str]) -> list[tuple[Recipe, Vectors]]:
    """Return what the weights make of the texts, (N, H), rightly (first) and with each fault."""
    tokenizer = Tokenizer(folder)
    im_end = tokenizer.encode([IM_END])[0].tolist()
    has_im_end = len(im_end) == 2  # itself, and the end token

    def read(recipe: Recipe, text: str) -> TokenizedText:
        ids = tokenizer.encode([recipe.rewrite(text)])[0].tolist()
        return TokenizedText(tuple(recipe.change_ids(ids, im_end[0])), recipe.is_causal)

    read_by = {
        recipe: [read(recipe, text) for text in texts]
        for recipe in RECIPES
        if has_im_end or recipe.fault is not Fault.END_WRONG
    }
    distinct = list(dict.fromkeys(one for texts in read_by.values() for one in texts))
    hidden = dict(zip(distinct, hidden_states(folder, distinct), strict=True))
    return [
        (recipe, torch.stack([recipe.pool(hidden[one]) for one in texts]).double().numpy())
        for recipe, texts in read_by.items()
    ]


class TokenizedText(NamedTuple):
    """A text as token ids, and which tokens each of them sees."""

    ids: tuple[int, ...]
    is_causal: bool = True


@torch.inference_mode()
def hidden_states(folder: Path, texts: Sequence[TokenizedText]) -> list[torch.Tensor]:
    """Return every token's hidden state after the final norm, each (L, H) float32.

    Follows transformers' Qwen3Model (modeling_qwen3.py, 4.51 to 5.23).
    """
    shape, tensors = read_architecture(folder), tensor_readers(folder)
    lengths = [len(text.ids) for text in texts]
    ids = torch.tensor([i for text in texts for i in text.ids])
    positions = torch.cat([torch.arange(length) for length in lengths]).float()
    exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = positions[:, None, None] / shape.rope_theta**exponents  # (T, 1, D / 2)
    x = tensors["embed_tokens.weight"]()[ids].float()  # (T, H), all texts end to end

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, shape.rms_norm_eps)

    for layer in range(shape.num_layers):
        prefix = f"layers.{layer}."
        w = {
            name.removeprefix(prefix).removesuffix(".weight"): read().float()
            for name, read in tensors.items()
            if name.startswith(prefix)
        }
        normed = norm(x, w["input_layernorm"])
        q, k, v = (
            F.linear(normed, w[f"self_attn.{name}_proj"]).unflatten(1, (-1, shape.head_dim))
            for name in "qkv"
        )  # (T, heads, D)
        q = _rotate(norm(q, w["self_attn.q_norm"]), angles)
        k = _rotate(norm(k, w["self_attn.k_norm"]), angles)
        x = x + F.linear(_attend(q, k, v, texts), w["self_attn.o_proj"])
        normed = norm(x, w["post_attention_layernorm"])
        gate = F.silu(F.linear(normed, w["mlp.gate_proj"]))
        x = x + F.linear(gate * F.linear(normed, w["mlp.up_proj"]), w["mlp.down_proj"])
    return list(norm(x, tensors["norm.weight"]().float()).split(lengths))


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, texts: Sequence[TokenizedText]
) -> torch.Tensor:
    """Return the attention of each text by itself, (T, Hq * D)."""
    lengths = [len(text.ids) for text in texts]
    outputs: list[torch.Tensor] = []
    for text, *qkv in zip(texts, *(one.split(lengths) for one in (q, k, v)), strict=True):
        by_head = [one.transpose(0, 1) for one in qkv]  # (heads, L, D)
        attended = F.scaled_dot_product_attention(
            *by_head, is_causal=text.is_causal, enable_gqa=True
        )
        outputs.append(attended.transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Return x (T, heads, D) turned: the two halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
