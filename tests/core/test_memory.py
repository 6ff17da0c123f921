"""Memory by arithmetic: against what a forward really holds, and what follows for real cards."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from qwen3_embedding_integrations import ConfigError, EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.core.attention import behind_prefix
from qwen3_embedding_integrations.core.checkpoint import Architecture, read_architecture
from qwen3_embedding_integrations.core.layout import PREFIX_ROOMS
from qwen3_embedding_integrations.core.loading import load_model
from qwen3_embedding_integrations.core.memory import (
    KEPT_PREFIX_TOKENS,
    bytes_per_token,
    check_weights,
    find_room,
    prefix_bytes_per_token,
    weight_bytes,
)
from qwen3_embedding_integrations.core.model import Qwen3Model
from qwen3_embedding_integrations.core.packing import PackedBatch
from tests.checkpoints import SHAPE_SMALL, write_checkpoint
from tests.core.test_model import native_model

CPU = torch.device("cpu")
NAMED = {"vocab_size": 151669, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_positions": 32768}


def architecture(layers: int, hidden: int, heads: int, mlp: int) -> Architecture:
    return Architecture(
        num_layers=layers, hidden_size=hidden, num_heads=heads, intermediate_size=mlp,
        num_kv_heads=8, head_dim=128, **NAMED,
    )  # fmt: skip


SIZES = {  # the published config.json files
    "0.6B": architecture(28, 1024, 16, 3072),
    "4B": architecture(36, 2560, 32, 9728),
    "8B": architecture(36, 4096, 32, 12288),
}


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages made inside it that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # What is read was there before: only what an operation makes is counted.
        given = {x.untyped_storage()._cdata for x in tree_flatten((args, kwargs))[0] if _is(x)}
        for tensor in filter(_is, tree_flatten(out)[0]):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _is(x: object) -> bool:
    return isinstance(x, torch.Tensor)


def held_bytes(folder: Path, dtype: torch.dtype, num_tokens: int, num_prefix: int) -> int:
    """Return the peak of what one forward of a single text holds, attention's own apart."""
    base = native_model(folder, dtype)
    model = Qwen3Model(
        base._weights,
        base.architecture,
        # As a packed operator: the output and a float32 a query and head.
        attention=behind_prefix(lambda q, k, v, segments: torch.empty_like(q).contiguous()),
        dense=base._dense,
        device=CPU,
        dtype=dtype,
    )
    prefix_ids = tuple(range(num_prefix))
    if prefix_ids:
        model.prefix(prefix_ids)
    batch = PackedBatch.pack([np.arange(num_tokens, dtype=np.int32)], prefix_ids)
    with Allocations() as allocations:
        model(batch)
    return allocations.peak


SHAPES = {
    "as the 0.6B": {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4},
    "as the 8B": {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4},
    "a narrow MLP": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("num_prefix", [0, 40])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_estimate_holds_what_a_forward_holds(tmp_path, shape, dtype, num_prefix):
    """Bytes a token by arithmetic are no less than measured, and at most 1.6 times as many."""
    heads = {"num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 3, "vocab_size": 2000}
    folder = write_checkpoint(tmp_path / "shape", SHAPE_SMALL | heads | shape)
    few, many = (held_bytes(folder, dtype, n, num_prefix) for n in (512, 1536))
    measured = (many - few) / 1024  # without what does not grow with the tokens
    estimate = bytes_per_token(read_architecture(folder), dtype.itemsize)
    ratio = estimate / measured
    assert 1 <= ratio <= 1.6, f"estimated {estimate}, measured {measured:.0f}: {ratio:.2f} times"


def test_kept_prefixes_stay_within_what_is_reserved(tmp_path):
    """However long the instructions are, a model keeps no more of them than is reserved for.

    As many bytes as by arithmetic, and graphs have room for no more of them than that again.
    """
    model = native_model(write_checkpoint(tmp_path / "prefixes", SHAPE_SMALL), torch.bfloat16)
    per_token = prefix_bytes_per_token(model.architecture, 2)
    for i in range(40):
        prefix = model.prefix(tuple(range(i, i + 3 + 13 * i)))
        assert prefix.nbytes == per_token * (3 + 13 * i)
        assert model.num_kept_tokens <= KEPT_PREFIX_TOKENS
    kept = sum(one.nbytes for one in model._prefixes.values())
    assert KEPT_PREFIX_TOKENS // 2 < kept / per_token <= KEPT_PREFIX_TOKENS
    assert sum(PREFIX_ROOMS) <= KEPT_PREFIX_TOKENS


def test_the_weights_are_what_is_loaded(tmp_path):
    """The bytes of the weights by arithmetic are those of the tensors that are loaded."""
    folder = write_checkpoint(tmp_path / "weights", SHAPE_SMALL)
    for dtype in (torch.bfloat16, torch.float32):
        weights = native_model(folder, dtype)._weights
        tensors = [weights.embedding, weights.norm]
        for layer in weights.layers:
            tensors += [getattr(layer, name) for name in layer.__slots__]
        loaded = sum(tensor.nbytes for tensor in tensors)
        assert weight_bytes(read_architecture(folder), dtype.itemsize) == loaded, dtype


def test_the_published_sizes_have_their_known_weights():
    """In bfloat16 the three models weigh what their files on the hub do."""
    gigabytes = {name: weight_bytes(one, 2) / 1e9 for name, one in SIZES.items()}
    assert gigabytes["0.6B"] == pytest.approx(1.19, abs=0.01)
    assert gigabytes["4B"] == pytest.approx(8.04, abs=0.02)
    assert gigabytes["8B"] == pytest.approx(15.1, abs=0.1)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_card_of_8_gb_runs_the_small_model_at_8192_tokens(itemsize):
    """With 8 GB, half a GB of it the driver's, 0.6B reads 8,192 tokens, in float32 as well."""
    free = int(7.5e9) - weight_bytes(SIZES["0.6B"], itemsize)
    room = find_room(SIZES["0.6B"], itemsize, device="cuda:0", free_bytes=free)
    room.check_length(8192)
    assert room.max_tokens >= 16384, room


def test_a_large_card_runs_every_size_at_full_length():
    """With 139 GB every model reads the 32,768 tokens it was trained for."""
    for name, one in SIZES.items():
        free = int(139e9) - weight_bytes(one, 2)
        room = find_room(one, 2, device="cuda:0", free_bytes=free)
        assert room.max_tokens >= 32768, name


def test_a_length_that_cannot_fit_is_refused_with_the_numbers():
    """4B on 9.2 GB: the error names the length, both sizes, the device and a length that fits."""
    free = int(9.2e9) - weight_bytes(SIZES["4B"], 2)
    room = find_room(SIZES["4B"], 2, device="cuda:1", free_bytes=free)
    with pytest.raises(ConfigError) as caught:
        room.check_length(8192)
    message = str(caught.value)
    assert f"lower max_length to {room.max_tokens}" in message
    for part in ("max_length is 8192", "cuda:1", f"{free / 1e9:.2f} GB are free", "GB on cuda:1"):
        assert part in message
    room.check_length(room.max_tokens)


def test_no_room_at_all_names_no_length():
    """Where not even a few tokens fit, no length is proposed."""
    room = find_room(SIZES["0.6B"], 2, device="cuda:0", free_bytes=100_000_000)
    assert room.max_tokens == 0
    with pytest.raises(ConfigError, match=r"0\.10 GB are free beside the weights; use a smaller"):
        room.check_length(1)


def test_weights_that_cannot_fit_are_refused_before_they_are_read():
    """8B on a card with 12 GB free is refused with both numbers; 0.6B is not."""
    check_weights(SIZES["0.6B"], 2, device="cuda:0", free_bytes=int(12e9))
    with pytest.raises(ConfigError, match=r"weights take 15\.\d+ GB, cuda:0 has 12\.00 GB free"):
        check_weights(SIZES["8B"], 2, device="cuda:0", free_bytes=int(12e9))


def test_an_encoder_refuses_a_length_its_device_has_no_room_for():
    """An encoder over a loaded model checks its max_length against the room that was found."""
    config = EncoderConfig(model="tiny", device="cpu", dtype="float32", max_length=2048)
    loaded = load_model(config.engine)
    try:
        room = find_room(loaded.architecture, 4, device="cpu", free_bytes=2_000_000_000)
        small = replace(room, max_tokens=1000)
        Qwen3Encoder.over(replace(loaded, rooms=(room,)), config)
        with pytest.raises(ConfigError, match="max_length is 2048"):
            Qwen3Encoder.over(replace(loaded, rooms=(room, small)), config)
    finally:
        loaded.engine.close()


@pytest.mark.cuda
@pytest.mark.parametrize("attention", ["flash", "efficient"])
def test_a_card_holds_no_more_than_estimated(tmp_path, attention):
    """On a card, what a forward allocates at its peak is no more than the estimate."""
    folder = write_checkpoint(tmp_path / "card", SHAPE_SMALL | {"num_hidden_layers": 2})
    config = EncoderConfig(
        model=str(folder), device="cuda", dtype="bfloat16", attention=attention, max_length=4096
    )
    loaded = load_model(config.engine)
    try:
        launch = loaded.engine._workers[0]._launch
        batch = PackedBatch.pack([np.arange(4096, dtype=np.int32)] * 4)
        launch(batch)()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        launch(batch)()
        peak = torch.cuda.max_memory_allocated() - before
        estimate = batch.num_tokens * loaded.rooms[0].bytes_per_token
        assert peak <= estimate, f"{peak:,} bytes, estimated {estimate:,}"
    finally:
        loaded.engine.close()
