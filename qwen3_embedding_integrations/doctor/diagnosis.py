"""diagnose: every check in an order in which one fault is not taken for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..bench.machine import available_bytes, describe
from ..contract import Encoder
from ..core.checkpoint import locate_model, read_architecture, read_quantization
from ..core.config import TINY, EngineConfig, check_range
from ..core.exported import NOTE
from ..encoder import Qwen3Encoder
from ..errors import ConfigError
from ..remote import RemoteEncoder, ServerClient
from .golden import Golden, check_golden, find_golden
from .relations import (
    check_batch,
    check_dimensions,
    check_finite,
    check_length_one,
    check_long_text,
    check_template,
    check_whole_text,
)
from .report import Check, Diagnosis, skipped
from .subject import Refusal, Subject, of_encoder, of_server
from .weights import check_weights

RESOLVED = ("model", "device", "dtype", "quantization", "attention", "max_batch_tokens")
MAX_TOKENS = 2300  # beyond the limits that servers are most often left at: 512, 2,048
RETRY_S = 2.0  # long enough for a busy moment; a server that answers NaN by 500 is asked so long

RELATIONS: dict[str, Callable[[Subject], Check]] = {
    "finite": check_finite,
    "unit length": check_length_one,
    "reads the whole text": check_whole_text,
    "dimensions": check_dimensions,
    "alone = batched": check_batch,
    "long text": check_long_text,
    "instruction and template": check_template,
}
# What is wrong there is wrong everywhere.
FATAL = {"finite": "vectors are not finite", "reads the whole text": "texts are not read"}


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
    model. `reference` is a model whose weights are at hand (folder, hub id or "tiny"): with them
    every fault has a name. "auto" takes the encoder's own files, and `tiny` for a server that
    serves it; None uses published values and relations alone. Long texts have `max_tokens` at
    most. Raises ConfigError, ModelLoadError, and RemoteError where the server cannot be asked.

    >>> from qwen3_embedding_integrations import diagnose, shared_encoder
    >>> diagnose(shared_encoder("tiny")).faults
    ()
    """
    check_range("max_tokens", max_tokens, 64, 1_000_000)
    end = ""
    if isinstance(encoder_or_url, str):
        if model is None:
            raise ConfigError("model is missing; give the name that the server has for its model")
        client = ServerClient(encoder_or_url, model=model, api_key_env=api_key_env, retry_s=RETRY_S)
    elif model is not None or api_key_env is not None:
        raise ConfigError("model and api_key_env go with a URL; an encoder has its own")
    elif isinstance(encoder_or_url, RemoteEncoder):
        # Raw vectors, by its addresses and key: the encoder itself mends what servers forget.
        client = encoder_or_url._open(retry_s=RETRY_S)  # pyright: ignore[reportPrivateUsage]
        end = encoder_or_url._suffix  # pyright: ignore[reportPrivateUsage]
    else:
        return _examine(of_encoder(encoder_or_url), encoder_or_url, reference, max_tokens)
    with client:
        return _examine(of_server(client, end=end), None, reference, max_tokens)


def _examine(
    subject: Subject, encoder: Encoder | None, reference: str | None, max_tokens: int
) -> Diagnosis:
    ours = encoder if isinstance(encoder, Qwen3Encoder) else None
    folder = _find_reference(subject, ours, reference)
    contract = None if encoder is None else encoder.contract
    golden = None
    if contract is None or contract.lora is None:  # with an adapter the values are others
        golden = find_golden(subject.model, contract and contract.revision)
    architecture = folder and read_architecture(folder)
    limits = [max_tokens, subject.max_tokens, architecture and architecture.max_positions]
    subject = replace(
        subject,
        max_tokens=min(limit for limit in limits if limit is not None),
        width=architecture.hidden_size if architecture else golden and golden.width,
    )
    return Diagnosis(
        subject=subject.name,
        known="weights" if folder else "values" if golden else "nothing",
        checks=tuple(_run(subject, folder, golden)),
        machine=_describe_machine(ours),
    )


def _find_reference(
    subject: Subject, ours: Qwen3Encoder | None, reference: str | None
) -> Path | None:
    """Return the folder with the weights to compare with, None if there are none."""
    if reference is None:
        return None
    if reference != "auto":
        folder = locate_model(EngineConfig(model=reference))
        if read_quantization(folder) is not None:
            raise ConfigError(f"reference={reference!r} has int8 weights; give their source")
        return folder
    if ours is not None:
        folder = ours._loaded.folder  # pyright: ignore[reportPrivateUsage]
        is_graph = (folder / NOTE).is_file()  # an export's, without weights
        is_changed = is_graph or read_quantization(folder) is not None or ours.contract.lora
        return None if is_changed else folder
    return locate_model(EngineConfig(model=TINY)) if subject.model == TINY else None


def _run(subject: Subject, folder: Path | None, golden: Golden | None) -> list[Check]:
    """Return what each check found; those that a fault found before would mislead are skipped."""
    checks: list[Check] = []

    def ask(name: str, check: Callable[[], Check]) -> Check:
        try:
            found = check()
        except Refusal as refusal:
            found = skipped(str(refusal))
        checks.append(replace(found, name=name))
        return found

    for name, check in RELATIONS.items():
        if ask(name, partial(check, subject)).verdict == "wrong" and name in FATAL:
            ask("all others", partial(skipped, FATAL[name]))
            return checks
    if folder is not None:
        found = ask("values of the weights", partial(check_weights, subject, folder))
        if found.verdict in {"wrong", "note"}:
            return checks  # it has a name, or the weights' answer is known better than published
    if golden is not None:
        ask("published values", partial(check_golden, subject, golden, is_of_weights=bool(folder)))
    elif folder is None:
        ask("values", partial(skipped, "unknown model: give --reference, or its official name"))
    return checks


def _describe_machine(encoder: Qwen3Encoder | None) -> dict[str, Any]:
    """Return processor, devices, free memory and versions; of an encoder, its resolved options."""
    described = describe("qwen3-embedding doctor")
    del described["command"], described["family_model"]
    described["free_memory_bytes"] = available_bytes()
    described["devices"] = [
        {
            "name": torch.cuda.get_device_name(index),
            "capability": list(torch.cuda.get_device_capability(index)),
            "free_memory_bytes": torch.cuda.mem_get_info(index)[0],
        }
        for index in range(torch.cuda.device_count())
    ]
    described["versions"]["cuda"] = torch.version.cuda
    if encoder is not None:
        config = encoder._loaded.config  # pyright: ignore[reportPrivateUsage]
        resolved = {name: getattr(config, name) for name in RESOLVED}
        contract = encoder.contract
        own = {"quantization": contract.quantization, "contract": contract.fingerprint}
        described["encoder"] = {**resolved, **own}
    return described
