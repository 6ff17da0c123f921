"""diagnose: every check in an order in which one fault is not taken for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..contract import Encoder
from ..core.checkpoint import Architecture, locate_model, read_architecture, read_quantization
from ..core.config import TINY, EngineConfig
from ..encoder import Qwen3Encoder
from ..errors import ConfigError
from ..remote import RemoteEncoder, ServerClient
from .faults import Check, Diagnosis, Fault
from .golden import Golden, check_golden, find_golden
from .machine import describe_machine
from .relations import (
    check_batch,
    check_dimensions,
    check_finite,
    check_length_one,
    check_long_text,
    check_prompt_is_read,
    check_query_template,
    check_whole_text,
    reads_roles,
)
from .subject import EncoderSubject, Interview, Refusal, ServerSubject, Subject
from .values import check_values

MAX_TOKENS = 2300  # beyond the limits that servers are most often left at: 512, 2,048
RETRY_S = 2.0  # long enough for a busy moment; a server that answers NaN by 500 is asked so long


def diagnose(
    encoder_or_url: Encoder | str,
    *,
    model: str | None = None,
    reference: str | None = "auto",
    api_key_env: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Diagnosis:
    """Return whether an encoder, or an OpenAI-compatible server, is right, and what is wrong.

    Of a RemoteEncoder its server is examined. Of a URL, `model` is the server's own name for the
    model. `reference` is a model whose weights are
    at hand (folder, hub id or "tiny"): with them every fault has a name. "auto" takes the
    encoder's own files, and `tiny` for a server that serves it; None uses published values and
    relations alone. Long texts have `max_tokens` at most. Raises ConfigError, ModelLoadError, and
    RemoteError where the server cannot be asked.

    >>> from qwen3_embedding_integrations import diagnose, shared_encoder
    >>> diagnose(shared_encoder("tiny")).faults
    ()
    """
    if max_tokens < 64:
        raise ConfigError(f"max_tokens is {max_tokens}; choose 64 or more")
    if not isinstance(encoder_or_url, str):
        if model is not None or api_key_env is not None:
            raise ConfigError("model and api_key_env go with a URL; an encoder has its own")
        if isinstance(encoder_or_url, RemoteEncoder):
            # Raw vectors, by its addresses and key: the encoder itself mends what servers forget.
            open_client = encoder_or_url._open  # pyright: ignore[reportPrivateUsage]
            end = encoder_or_url._suffix  # pyright: ignore[reportPrivateUsage]
            with open_client(retry_s=RETRY_S) as client:
                return _examine(ServerSubject(client, end=end), None, reference, max_tokens)
        return _examine(EncoderSubject(encoder_or_url), encoder_or_url, reference, max_tokens)
    if model is None:
        raise ConfigError("model is missing; give the name that the server has for its model")
    with ServerClient(
        encoder_or_url, model=model, api_key_env=api_key_env, retry_s=RETRY_S
    ) as client:
        return _examine(ServerSubject(client), None, reference, max_tokens)


def _examine(
    subject: Subject, encoder: Encoder | None, reference: str | None, max_tokens: int
) -> Diagnosis:
    folder = _find_reference(subject, encoder, reference)
    architecture = None if folder is None else read_architecture(folder)
    contract = None if encoder is None else encoder.contract
    golden = None
    if contract is None or contract.lora is None:  # with an adapter the values are others
        golden = find_golden(subject.model, contract and contract.revision)
    limits = [max_tokens, subject.max_tokens, architecture and architecture.max_positions]
    interview = Interview(subject)
    checks = _run(
        interview,
        folder,
        architecture,
        golden,
        max_tokens=min(limit for limit in limits if limit is not None),
    )
    known: Literal["weights", "values", "nothing"] = "values" if golden else "nothing"
    return Diagnosis(
        subject=subject.name,
        known="weights" if folder else known,
        checks=tuple(checks),
        machine=describe_machine(encoder if isinstance(encoder, Qwen3Encoder) else None),
    )


def _find_reference(
    subject: Subject, encoder: Encoder | None, reference: str | None
) -> Path | None:
    """Return the folder with the weights to compare with, None if there are none."""
    if reference is None:
        return None
    if reference != "auto":
        folder = locate_model(EngineConfig(model=reference))
        if read_quantization(folder) is not None:
            raise ConfigError(f"reference={reference!r} has int8 weights; give their source")
        return folder
    if isinstance(encoder, Qwen3Encoder):
        folder = encoder._loaded.folder  # pyright: ignore[reportPrivateUsage]
        is_changed = read_quantization(folder) is not None or encoder.contract.lora is not None
        return None if is_changed else folder
    return locate_model(EngineConfig(model=TINY)) if subject.model == TINY else None


def _run(
    interview: Interview,
    folder: Path | None,
    architecture: Architecture | None,
    golden: Golden | None,
    *,
    max_tokens: int,
) -> list[Check]:
    """Return what each check found; those that a fault found before would mislead are skipped."""
    width = architecture.hidden_size if architecture else golden.width if golden else None
    facts: dict[str, Any] = {
        "dtype": interview.subject.dtype,
        "quantization": interview.subject.quantization,
    }
    checks = [check_finite(interview)]
    if checks[-1].verdict == "wrong":
        return [*checks, _skipped("all others", "vectors are not finite")]
    checks.append(check_whole_text(interview))
    checks.append(check_length_one(interview, model_width=width))
    if checks[-2].verdict == "wrong":
        return [*checks, _skipped("all others", "texts are not read")]
    rest: list[tuple[str, Callable[[], Check]]] = [
        ("dimensions", lambda: check_dimensions(interview)),
        ("alone = batched", lambda: check_batch(interview)),
        ("long text", lambda: check_long_text(interview, max_tokens=max_tokens)),
        ("instruction and template", lambda: _check_template(interview)),
    ]
    if folder is not None:
        rest.append(("values of the weights", lambda: check_values(interview, folder, **facts)))
    for name, run_check in rest:
        try:
            checks.append(run_check())
        except Refusal as refusal:
            checks.append(_skipped(name, str(refusal)))
    if folder is not None and checks[-1].verdict in {"wrong", "note"}:
        return checks  # it has a name, or the weights' answer is known better than the published
    if golden is not None:
        check = check_golden(interview, golden, **facts)
        if folder is not None and check.verdict == "wrong":
            detail = f"the weights at hand are not those of {golden.model}"
            check = replace(check, detail=detail, fault=Fault.OTHER_WEIGHTS, is_certain=True)
        checks.append(check)
    elif folder is None:
        checks.append(_skipped("values", "unknown model: give --reference, or its official name"))
    return checks


def _check_template(interview: Interview) -> Check:
    """Return the check of the subject's own template, of a server only where it has one."""
    is_server = isinstance(interview.subject, ServerSubject)
    try:
        has_template = not is_server or reads_roles(interview)
    except Refusal:
        has_template = False
    if not has_template:
        return check_prompt_is_read(interview)  # the client writes the prompt
    check = check_query_template(interview)
    if is_server and check.fault is Fault.INSTRUCTION_IGNORED:
        return replace(check, verdict="note", fault=None, detail="the server has but one")
    return check


def _skipped(name: str, detail: str) -> Check:
    return Check(name=name, verdict="skipped", detail=detail)
