"""From EngineConfig to a model that runs: device, dtype, weights, tokenizer, engine."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ..errors import ConfigError, ModelLoadError
from .attention import CAPTURABLE, FLASH_CAPABILITY, Attention, choose_attention
from .checkpoint import Architecture, Task, locate_model, read_architecture, read_quantization
from .config import DEFAULT_MODEL, TINY, EngineConfig
from .dense import choose_dense
from .devices import cpu_multiplies_bfloat16, free_bytes, on_device, one_each, together
from .engine import Engine, Runner
from .graphs import Capture, CudaCapture
from .heads import Head, embedding_head, reranking_head
from .linear import fp8_obstacle, has_packed_products
from .loaded import LoadedModel, stamps_of
from .lora import Adapter, load_adapter
from .memory import Room, check_weights, find_room
from .model import Qwen3Model
from .pairs import PairTokenizer
from .quantization import Quantizer
from .team import Team, limit_threads
from .tokenizer import Tokenizer
from .weights import Layer, load_weights, read_output_rows
from .workers import on_fresh_thread

logger = logging.getLogger(__name__)

# Wide enough to keep the matrix units busy, small enough that a search waits little behind it.
MAX_BATCH_TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}
SHORT_TOKENS, LONG_TOKENS = 256, 512  # calls that on a CPU run beside a forward at least so long
QUANTIZED_ON = {"int8": "cpu", "fp8": "cuda"}


T = TypeVar("T", Tokenizer, PairTokenizer)


class _Source(NamedTuple):
    """What a model is made of, on whichever device."""

    folder: Path
    architecture: Architecture
    tokenizer: Tokenizer | PairTokenizer
    adapter: Adapter
    is_int8: bool  # as it was written by `quantize`


def load_model(config: EngineConfig) -> LoadedModel[Tokenizer]:
    """Return the embedding model, ready to run. Raises ModelLoadError or ConfigError."""
    # On a thread that ends: an operation leaves its thread with a team of OpenMP threads. With more
    # of these than cores, OpenMP puts its threads to sleep between operations, and waking them
    # doubles the time of a query. And in a forked child the caller may stand in a team whose other
    # threads stayed behind, and would wait for them for ever.
    return on_fresh_thread(lambda: _load_model(config, "embedding", Tokenizer))


def load_reranker(config: EngineConfig) -> LoadedModel[PairTokenizer]:
    """Return the reranker, ready to run. Raises ModelLoadError or ConfigError."""
    return on_fresh_thread(lambda: _load_model(config, "reranking", PairTokenizer))


def _load_model(
    config: EngineConfig, task: Task, make_tokenizer: Callable[[Path], T]
) -> LoadedModel[T]:
    folder = locate_model(config)
    architecture = read_architecture(folder, task)
    is_int8 = read_quantization(folder) is not None
    if is_int8 and config.quantization == "fp8":
        raise ConfigError(
            f'quantization="fp8": the weights in {folder} are int8 already; give the model that '
            "they were made of"
        )
    adapter = load_adapter(config, folder, architecture)
    config = resolve(replace(config, quantization="int8") if is_int8 else config)
    stamps = stamps_of(folder)
    tokenizer = make_tokenizer(folder)
    if tokenizer.num_ids > architecture.vocab_size:
        raise ModelLoadError(
            f"{folder}: tokenizer.json knows {tokenizer.num_ids} tokens, the model "
            f"{architecture.vocab_size}: they belong to different models"
        )
    source = _Source(folder, architecture, tokenizer, adapter, is_int8)
    made = [_make_runner(one, source) for one in one_each(config)]
    heads = [head for _, head, _ in made]
    engine = Engine(
        [runner for runner, _, _ in made] + _runners_beside(made[0][0]),
        width=heads[0].width,
        max_queue_tokens=config.max_queue_tokens,
    )
    rooms = tuple(room for _, _, room in made if room is not None)
    if config.model == TINY:
        logger.info("tiny is for trying, demos and tests; for real search use %s", DEFAULT_MODEL)
    computed = tuple(head.computed for head in heads)
    about = stamps, rooms, adapter.content_hash
    return LoadedModel(config, folder, architecture, tokenizer, engine, computed, *about)


def _make_runner(config: EngineConfig, source: _Source) -> tuple[Runner, Head, Room | None]:
    """Return the config's one device, its model's head, and what it has room for, if known."""
    device, architecture = torch.device(config.device), source.architecture
    with on_device(device):
        free = free_bytes(device)
        if free is not None:
            itemsize = 1 if config.quantization else _torch_dtype(config.dtype).itemsize
            check_weights(architecture, itemsize, device=config.device, free_bytes=free)
        model, attention = _make_model(config, source)
        free = free_bytes(device)
    budget, room = int(config.max_batch_tokens), None
    if free is not None:
        room = find_room(architecture, model.dtype.itemsize, device=config.device, free_bytes=free)
        room.check_length(1)
        budget = min(budget, room.max_tokens)
        logger.info(
            "%s: %.2f GB free beside the weights; %d tokens a forward",
            config.device,
            free / 1e9,
            budget,
        )
    is_cuda = device.type == "cuda"
    can_capture = is_cuda and attention in CAPTURABLE
    head = _make_head(model, source, CudaCapture(device) if can_capture else None)
    runner = Runner(
        head,
        config.device,
        budget,
        max_in_flight=2 if is_cuda else 1,
        probe=partial(torch.cuda.synchronize, device) if is_cuda else None,
        prepare=model.lead,
    )
    return runner, head, room


def _runners_beside(runner: Runner) -> list[Runner]:
    """Return what runs short calls, on one core, while a CPU is at a long forward."""
    limits = {"max_batch_tokens": SHORT_TOKENS, "beside_tokens": LONG_TOKENS}
    beside = replace(runner, **limits, prepare=partial(limit_threads, 1))
    return [beside] if runner.name == "cpu" else []


def _make_head(model: Qwen3Model, source: _Source, capture: Capture | None) -> Head:
    if isinstance(source.tokenizer, Tokenizer):
        return embedding_head(model, capture)
    answers = read_output_rows(source.folder, model.architecture, source.tokenizer.answer_ids)
    return reranking_head(model, answers, capture)


def _make_model(config: EngineConfig, source: _Source) -> tuple[Qwen3Model, Attention]:
    """Return the model on the config's one device, and its attention."""
    device, dtype = torch.device(config.device), _torch_dtype(config.dtype)
    architecture, is_fast = source.architecture, _has_fast_bfloat16(device)
    attention, reason = choose_attention(config.attention, device, dtype, has_fast_bfloat16=is_fast)
    dense, kernels_reason = choose_dense(
        architecture,
        device,
        dtype,
        has_fast_bfloat16=is_fast,
        is_int8=config.quantization == "int8",
    )
    quantizer = None
    if config.quantization and not source.is_int8:
        quantizer = Quantizer(architecture, source.tokenizer, config.quantization, device)

    def pack(embedding: torch.Tensor, layers: Iterable[Layer]) -> Iterable[Any]:
        return dense.pack(layers if quantizer is None else quantizer.quantize(embedding, layers))

    weights = load_weights(
        source.folder,
        architecture,
        device=device,
        dtype=torch.float32 if quantizer else dtype,
        pack=pack,
        fold=source.adapter.fold,
    )
    model = Qwen3Model(
        weights,
        architecture,
        attention=dense.spread(attention, may_replace=config.attention == "auto"),
        dense=dense,
        device=device,
        # The residual's: sums over all layers exceed float16 where products do not.
        dtype=torch.float32 if device.type == "cpu" or dtype == torch.float16 else dtype,
        team=Team(torch.get_num_threads(), dense.max_imbalance) if device.type == "cpu" else None,
    )
    logger.info(
        "%s on %s; attention: %s; kernels: %s", config.model, config.device, reason, kernels_reason
    )
    return model, attention


def resolve(config: EngineConfig) -> EngineConfig:
    """Return the config with every "auto" replaced by what this machine makes of it."""
    return together([_resolve_one(one) for one in one_each(config)])


def _resolve_one(config: EngineConfig) -> EngineConfig:
    """Return the config of one device, resolved."""
    device = _resolve_device(config.device, config.quantization)
    if config.quantization:
        _check_quantization(config, device)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    elif dtype == "bfloat16" and device.type == "cuda" and not _has_fast_bfloat16(device):
        raise ConfigError(
            f'dtype="bfloat16": {torch.cuda.get_device_name(device)} cannot compute in it (it '
            'needs sm_80); use "float32", or "float16" with the 0.6B model'
        )
    budget = config.max_batch_tokens
    return replace(
        config,
        device=str(device),
        dtype=dtype,
        max_batch_tokens=MAX_BATCH_TOKENS[device.type] if budget == "auto" else budget,
    )


def _check_quantization(config: EngineConfig, device: torch.device) -> None:
    """Raise ConfigError unless the device can multiply in what `quantization` names."""
    word = f'quantization="{config.quantization}"'
    if device.type != QUANTIZED_ON[str(config.quantization)]:
        where = {"int8": "a CPU", "fp8": "an NVIDIA card"}[str(config.quantization)]
        raise ConfigError(
            f'{word} runs on {where}, not on device="{config.device}"; '
            f'use device="{QUANTIZED_ON[str(config.quantization)]}" or "auto", '
            "or leave quantization out"
        )
    if config.quantization == "fp8":
        obstacle = fp8_obstacle(device, torch.cuda.get_device_capability(device))
        if obstacle:
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"{word} on {name}: {obstacle}; leave quantization out")
    elif not has_packed_products():
        raise ConfigError(
            f"{word} needs an x86 processor and a torch with oneDNN "
            f"(this is {platform.machine()}, torch {torch.__version__}); leave it out"
        )


def _resolve_device(name: str, quantization: str | None) -> torch.device:
    if name == "auto" and quantization:
        name = QUANTIZED_ON[quantization]
        if name == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f'quantization="{quantization}" needs an NVIDIA card, and torch '
                f'{torch.__version__} sees none here; leave it out, or use "int8" on an x86 CPU'
            )
    if name == "auto":
        has_cuda, has_mps = torch.cuda.is_available(), _has_sound_mps()
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'device is {name!r}; choose "auto", "cpu", "mps" or "cuda:0"') from error
    if device.type not in MAX_BATCH_TOKENS:
        raise ConfigError(f'device is {name!r}; choose "auto", "cpu", "mps" or "cuda:0"')
    if device.type == "mps" and not _has_sound_mps():
        raise ConfigError(
            f'device="mps" needs a Metal device and torch 2.11 or newer (this is '
            f'{torch.__version__}); use device="cpu"'
        )
    if device.type == "cuda":
        num_cards = torch.cuda.device_count()
        index = device.index or 0
        if index >= num_cards:
            raise ConfigError(
                f'device="{name}": {num_cards} CUDA devices are visible to this build of torch '
                f'({torch.__version__}); use device="auto"'
            )
        return torch.device("cuda", index)
    return torch.device(device.type)  # "cpu:0" is "cpu"


def _has_sound_mps() -> bool:
    # Before 2.11 a single query over 1,024 keys or more reads out of bounds (pytorch#174861).
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch.backends.mps.is_available() and release >= (2, 11)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # is_bf16_supported() counts emulation.
        return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return cpu_multiplies_bfloat16()


def _torch_dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
