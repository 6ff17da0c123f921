"""The faults that have a name, what a check found, and the diagnosis of all checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

Verdict = Literal["right", "wrong", "note", "skipped"]


class Fault(StrEnum):
    """What can be wrong with a backend that serves Qwen3-Embedding."""

    NON_FINITE = "float16 overflow"
    END_MISSING = "end token missing"
    END_DOUBLED = "end token doubled"
    END_WRONG = "another end token"
    MEAN_POOLING = "mean pooling"
    FIRST_TOKEN_POOLING = "first-token pooling"
    NOT_CAUSAL = "attention not causal"
    WRONG_TEMPLATE = "wrong template"
    INSTRUCTION_IGNORED = "instruction ignored"
    NOT_NORMALIZED = "not normalised"
    CUT_WITHOUT_RENORMALIZING = "cut without renormalising"
    CUT_ELSEWHERE = "dimensions are not the first"
    TRUNCATED = "truncated"
    WRONG_PADDING = "wrong padding side"
    DEPENDS_ON_BATCH = "a text's vector depends on its batch"
    ORDER_LOST = "order of inputs lost"
    INEXACT = "less exact than its dtype"
    OTHER_WEIGHTS = "other weights"


REMEDIES = {
    Fault.NON_FINITE: "serve in bfloat16, or float32 where the device lacks it: the 8B overflows "
    "float16 (QwenLM/Qwen3-Embedding#164)",
    Fault.END_MISSING: "the tokenizer must append one <|endoftext|>: take the model's own "
    "tokenizer.json, or a GGUF made after ggml-org/llama.cpp#14234; until then "
    'RemoteEncoder(end_token="client") writes it',
    Fault.END_DOUBLED: "append <|endoftext|> by the tokenizer or by hand, not both: since revision "
    "97b0c614 tokenizer.json does",
    Fault.END_WRONG: "tokenizer.eos_token is <|im_end|>, not what a text ends with: append "
    "<|endoftext|> (id 151643)",
    Fault.MEAN_POOLING: 'pool the last token (TEI: --pooling last-token; vLLM: pooling_type "LAST"'
    "; llama.cpp: --pooling last)",
    Fault.FIRST_TOKEN_POOLING: "pool the last token, not the first (CLS): under causal attention "
    "that has read nothing else",
    Fault.NOT_CAUSAL: "Qwen3-Embedding attends causally: no text may look ahead",
    Fault.WRONG_TEMPLATE: 'queries read "Instruct: {instruction}\\nQuery:{query}", with no space '
    'after "Query:"; documents are bare',
    Fault.INSTRUCTION_IGNORED: "write the instruction that a call is given into its prompt",
    Fault.NOT_NORMALIZED: "normalise (L2) what the server sends, or use cosine distance everywhere",
    Fault.CUT_WITHOUT_RENORMALIZING: "normalise (L2) after cutting to `dimensions`, not before",
    Fault.CUT_ELSEWHERE: "`dimensions` are the first numbers of the model's vector, normalised",
    Fault.TRUNCATED: "raise the server's limit (Ollama: num_ctx; TEI: --max-batch-tokens and "
    "--auto-truncate false; sentence-transformers: max_seq_length); the models read 32,768 tokens",
    Fault.WRONG_PADDING: "pad on the left where position -1 is pooled, or pool at each text's own "
    "last token, found by the attention mask and not by the pad id, which is <|endoftext|>",
    Fault.DEPENDS_ON_BATCH: "upgrade the server (TEI: #642, #882), or send one text a request",
    Fault.ORDER_LOST: "match vectors to texts by `index`; if that is wrong too, send one text a "
    "request",
    Fault.INEXACT: "compare with dtype=float32 on a CPU; report it with the machine below",
    Fault.OTHER_WEIGHTS: "compare the model's name, revision and files with those you expect; "
    "quantised files differ by a little, other models by much",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was asked of a backend, and what came of it."""

    name: str = ""
    verdict: Verdict
    detail: str
    fault: Fault | None = None
    is_certain: bool = True  # else: the likeliest of several


def right(detail: str) -> Check:
    """Return a check that found what must be."""
    return Check(verdict="right", detail=detail)


def wrong(fault: Fault | None, detail: str, *, is_certain: bool = True) -> Check:
    """Return a check that found a fault."""
    return Check(verdict="wrong", detail=detail, fault=fault, is_certain=is_certain)


def note(detail: str) -> Check:
    """Return a check of something that is not wrong, but good to know."""
    return Check(verdict="note", detail=detail)


def skipped(detail: str) -> Check:
    """Return a check that could not be made."""
    return Check(verdict="skipped", detail=detail)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Whether a backend is right, and the name of what is wrong.

    `known` says what the vectors could be compared with: "weights" (every fault has a name),
    "values" (published or recorded ones) or "nothing" (relations between answers alone).
    """

    subject: str
    known: Literal["weights", "values", "nothing"]
    checks: tuple[Check, ...]
    machine: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_right(self) -> bool:
        """Whether no check found anything wrong."""
        return all(check.verdict != "wrong" for check in self.checks)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The names of what is wrong, each once, in the order of the checks."""
        found = (check.fault for check in self.checks if check.verdict == "wrong")
        return tuple(dict.fromkeys(fault for fault in found if fault is not None))

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON-able values."""
        return {
            "subject": self.subject,
            "is_right": self.is_right,
            "known": self.known,
            "faults": [{"name": str(fault), "remedy": REMEDIES[fault]} for fault in self.faults],
            "checks": [asdict(check) for check in self.checks],
            "machine": self.machine,
        }
