"""The options: frozen, hashable, JSON-able, and checked when they are given."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qwen3_embedding_integrations import ConfigError, EncoderConfig
from qwen3_embedding_integrations.core.config import EngineConfig

ANOTHER = {
    "model": "tiny",
    "revision": "97b0c614",
    "lora": "owner/adapter",
    "device": "cpu",
    "dtype": "bfloat16",
    "quantization": "int8",
    "attention": "sdpa",
    "max_batch_tokens": 2048,
    "max_queue_tokens": 50_000,
    "local_files_only": True,
    "dimensions": 128,
    "instruction": "Retrieve parallel sentences",
    "max_length": 512,
    "on_too_long": "chunk_mean",
    "on_empty": "embed",
}
REMOTE = {
    "base_url": "http://localhost:8000/v1",
    "api_key_env": "EMBEDDING_KEY",
}  # a server decides what a machine's options are


def test_a_config_survives_json():
    """to_dict through JSON and from_options gives an equal config with an equal hash."""
    for config in (EncoderConfig(), EncoderConfig(**ANOTHER), EncoderConfig(**REMOTE)):
        again = EncoderConfig.from_options(**json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)


def test_what_is_portable_names_nothing_of_one_machine():
    """What is kept beside an index gives the same config, but for what belongs to a machine."""
    config = EncoderConfig(**ANOTHER)
    data = json.loads(json.dumps(config.portable()))
    machine = {"device", "attention", "max_batch_tokens", "max_queue_tokens", "local_files_only"}
    assert set(EncoderConfig.option_names()) - set(data) == machine
    again = EncoderConfig.from_options(**data)
    assert dataclasses.replace(again, **{name: ANOTHER[name] for name in machine}) == config
    remote = EncoderConfig(**REMOTE)
    assert EncoderConfig.from_options(**json.loads(json.dumps(remote.portable()))) == remote


def test_every_option_tells_configs_apart():
    """Changing any one option gives another config; none is left out of equality."""
    assert {*ANOTHER, *REMOTE} == {field.name for field in dataclasses.fields(EncoderConfig)}
    configs = {EncoderConfig(), *(EncoderConfig(**{name: ANOTHER[name]}) for name in ANOTHER)}
    configs |= {EncoderConfig(base_url=REMOTE["base_url"]), EncoderConfig(**REMOTE)}
    assert len(configs) == 1 + len(ANOTHER) + len(REMOTE)


def test_a_config_is_frozen():
    """An option cannot be changed afterwards, when it would have no effect."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        EncoderConfig().dimensions = 64


def test_the_engine_needs_what_concerns_the_weights():
    """Options of reading and cutting do not ask for another copy of the weights."""
    reading = {"dimensions", "instruction", "max_length", "on_too_long", "on_empty"}
    for name, value in ANOTHER.items():
        is_same = EncoderConfig(**{name: value}).engine == EncoderConfig().engine
        assert is_same == (name in reading), name
    assert type(EncoderConfig(**ANOTHER).engine) is EngineConfig


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"dimensions": 0}, ["dimensions is 0", "from 32 to"]),
        ({"dimensions": 31}, ["dimensions is 31", "from 32 to"]),
        ({"dimensions": -64}, ["dimensions is -64"]),
        ({"dimensions": "64"}, ["dimensions is '64', a str", "int"]),
        ({"dimensions": 64.0}, ["dimensions is 64.0, a float"]),
        ({"dimensions": True}, ["dimensions is True, a bool"]),
        ({"model": ""}, ["model is empty", "tiny"]),
        ({"model": None}, ["model is None"]),
        ({"revision": 7}, ["revision is 7"]),
        ({"lora": 7}, ["lora is 7, a int"]),
        ({"lora": " "}, ["lora is empty", "or None"]),
        ({"device": 0}, ["device is 0"]),
        ({"dtype": "fp16"}, ["dtype is 'fp16'", "'float16'"]),
        ({"dtype": None}, ["dtype is None"]),
        ({"attention": "flash3"}, ["attention is 'flash3'", "'flash'"]),
        ({"max_batch_tokens": 0}, ["max_batch_tokens is 0", "from 1 to"]),
        ({"max_batch_tokens": None}, ["max_batch_tokens is None"]),
        ({"local_files_only": 1}, ["local_files_only is 1"]),
        ({"instruction": ""}, ["instruction is blank", "encode_documents"]),
        ({"instruction": " \n"}, ["instruction is blank"]),
        ({"instruction": None}, ["instruction is None"]),
        ({"max_length": 3}, ["max_length is 3", "from 4 to"]),
        ({"on_too_long": "cut"}, ["on_too_long is 'cut'", "'truncate'", "'chunk_mean'"]),
        ({"on_empty": "skip"}, ["on_empty is 'skip'", "'embed'"]),
        ({"base_url": ""}, ["base_url is ''", "http://localhost:8000/v1"]),
        ({"base_url": "localhost:8000"}, ["base_url is 'localhost:8000'"]),
        ({"base_url": "http://a/v1,"}, ["base_url is ''"]),
        ({"base_url": 8000}, ["base_url is 8000, a int"]),
        ({"base_url": "http://me:secret@a/v1"}, ["base_url for a holds", "api_key_env"]),
        ({"base_url": "http://a/v1?key=secret"}, ["base_url for a holds", "api_key_env"]),
        ({"base_url": "http://a/v1", "device": "cuda"}, ["device is 'cuda'", "leave it out"]),
        ({"base_url": "http://a/v1", "on_too_long": "chunk_mean"}, ["chunk_mean", "tokenizer"]),
        ({"api_key_env": "KEY"}, ["api_key_env is 'KEY' without a base_url"]),
        ({"base_url": "http://a/v1", "api_key_env": 7}, ["api_key_env is 7"]),
    ],
    ids=repr,
)
def test_an_impossible_value_is_an_error(options, parts):
    """A value an option cannot have is a ConfigError with the value and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        EncoderConfig(**options)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_option_is_an_error_with_the_nearest_name():
    """A misspelt option is not dropped: the error names it, the nearest one and all others."""
    with pytest.raises(ConfigError, match="'dimension'; did you mean 'dimensions'") as caught:
        EncoderConfig.from_options(dimension=64)
    assert "on_too_long" in str(caught.value)
    with pytest.raises(TypeError, match="normalize"):
        EncoderConfig(normalize=False)


def test_a_config_is_made_of_a_name_or_nothing():
    """A model's name, a config and nothing at all are configs; anything else is an error."""
    assert EncoderConfig.of("tiny") == EncoderConfig(model="tiny")
    assert EncoderConfig.of(None) == EncoderConfig()
    config = EncoderConfig(model="tiny")
    assert EncoderConfig.of(config) is config
    with pytest.raises(ConfigError, match="config is 7"):
        EncoderConfig.of(7)


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:x", "cuda:99", "meta", ""])
def test_an_unknown_device_is_an_error(device):
    """A device this machine does not have is a ConfigError, before any weight is read."""
    from qwen3_embedding_integrations.core.loading import resolve

    with pytest.raises(ConfigError, match="device"):
        resolve(EngineConfig(model="tiny", device=device))


def test_auto_is_resolved_once():
    """Every "auto" comes to a device, a dtype and a budget; what is resolved stays as it is."""
    from qwen3_embedding_integrations.core.loading import resolve

    resolved = resolve(EngineConfig(model="tiny"))
    assert "auto" not in (resolved.device, resolved.dtype, resolved.max_batch_tokens)
    assert resolve(resolved) == resolved
