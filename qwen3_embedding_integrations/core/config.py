"""The options, checked once: EngineConfig says which weights run where, the others the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from ..errors import ConfigError
from .prompts import WEB_SEARCH

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
DEFAULT_RERANKER = "Qwen/Qwen3-Reranker-0.6B"
MAX_LENGTH = 8192  # what the model card and the published MTEB runs use
MIN_DIMENSIONS = 32  # the narrowest width the models were trained to be cut to (model card)
TINY = "tiny"  # the small model this package carries, for trying and for tests

DType = Literal["auto", "float32", "bfloat16", "float16"]
AttentionBackend = Literal["auto", "flash", "efficient", "sdpa"]
Quantization = Literal["int8", "fp8"]
MACHINE_OPTIONS = {
    "device", "attention", "max_batch_tokens", "max_queue_tokens", "local_files_only",
}  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "fp8")
ATTENTION_BACKENDS = ("auto", "flash", "efficient", "sdpa")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which weights run where. Frozen, hashable, JSON-able.

    Two encoders whose options agree in these can share one copy of the weights.
    """

    model: str = DEFAULT_MODEL
    """A hub id, a folder, or "tiny" (a small model this package carries, for trying and tests)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; None takes the newest."""
    lora: str | None = None
    """A LoRA adapter, as PEFT saves it, to fold into the weights: a folder, or a hub id, also
    "owner/name@revision"."""
    device: str = "auto"
    """"auto" (CUDA, then MPS, then CPU), "cpu", "mps", "cuda" (the first card), "cuda:N", several
    cards as "cuda:0,cuda:1", or "cuda:all"."""
    dtype: DType = "auto"
    """"auto" is bfloat16 where the device computes fast in it, else float32."""
    quantization: Quantization | None = None
    """"int8" multiplies in int8 on an x86 CPU, "fp8" in fp8 on an NVIDIA card of sm_89 or newer:
    faster than bfloat16, half its memory."""
    attention: AttentionBackend = "auto"
    """"auto" takes the best the device has: "flash", "efficient" or "sdpa"."""
    max_batch_tokens: int | Literal["auto"] = "auto"
    """Tokens of one forward at most; one longer text still runs, alone."""
    max_queue_tokens: int | None = None
    """Tokens that may wait for the device; a call that would make them more is refused
    (QueueFullError), unless nothing waits. None: no bound."""
    local_files_only: bool = False
    """Never ask the network for a hub model."""

    def __post_init__(self) -> None:
        check_type("model", self.model, str)
        if not self.model.strip():
            raise ConfigError("model is empty; give a hub id, a folder, or 'tiny'")
        if self.revision is not None:
            check_type("revision", self.revision, str)
        if self.lora is not None:
            check_type("lora", self.lora, str)
            if not self.lora.strip():
                raise ConfigError("lora is empty; give an adapter's folder or hub id, or None")
        check_type("device", self.device, str)
        check_choice("dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)
        if self.quantization == "fp8" and self.dtype not in {"auto", "bfloat16"}:
            raise ConfigError(
                f'dtype is {self.dtype!r}; with quantization="fp8" what is not fp8 is bfloat16: '
                'leave dtype out, or give "bfloat16"'
            )
        check_choice("attention", self.attention, ATTENTION_BACKENDS)
        if self.max_batch_tokens != "auto":
            check_range("max_batch_tokens", self.max_batch_tokens, 1, 1_000_000)
        if self.max_queue_tokens is not None:
            check_range("max_queue_tokens", self.max_queue_tokens, 1, 1_000_000_000)
        check_type("local_files_only", self.local_files_only, bool)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return every option's name, `model` first."""
        return [field.name for field in fields(cls)]

    @classmethod
    def of(cls, config: Self | str | None) -> Self:
        """Return `config`, the config of a model's name, or the default; a folder's path absolute.

        So that one folder is one model, whatever the working directory becomes.
        """
        if config is None or isinstance(config, str):
            config = cls() if config is None else cls(model=config)
        if isinstance(config, cls):
            given = {} if config.is_remote else {"model": config.model, "lora": config.lora or TINY}
            paths = {name: Path(one).expanduser() for name, one in given.items() if one != TINY}
            found = {name: str(path.resolve()) for name, path in paths.items() if path.is_dir()}
            return replace(config, **found) if found else config
        raise ConfigError(f"config is {config!r}; give {cls.__name__}(...) or a model's name")

    @property
    def is_remote(self) -> bool:
        """Whether a server computes."""
        return False

    @property
    def engine(self) -> EngineConfig:
        """The options that need their own copy of the weights."""
        return EngineConfig(**{f.name: getattr(self, f.name) for f in fields(EngineConfig)})

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-able values; `from_options(**d)` reads them."""
        return asdict(self)


class RemoteOptions(TypedDict, total=False):
    """The options that concern texts and vectors, not the machine that computes."""

    revision: str | None
    lora: str | None
    dtype: DType
    quantization: Quantization | None
    dimensions: int | None
    instruction: str
    max_length: int
    on_too_long: Literal["truncate", "error", "chunk_mean"]
    on_empty: Literal["error", "embed"]
    api_key_env: str | None


class EncoderOptions(RemoteOptions, total=False):
    """EncoderConfig's options but for the model, for doors that take them by name."""

    device: str
    attention: AttentionBackend
    max_batch_tokens: int | Literal["auto"]
    max_queue_tokens: int | None
    local_files_only: bool
    base_url: str | None


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(EngineConfig):
    """Every option of an encoder. Frozen, hashable, JSON-able; checked when made (ConfigError)."""

    dimensions: int | None = None
    """Width of the vectors, from 32 to the model's own; None is the model's own."""
    instruction: str = WEB_SEARCH
    """What queries are for; one English sentence works best, also for Chinese texts."""
    max_length: int = MAX_LENGTH
    """Tokens of a text at most, instruction and end token included. The default is lowered to
    what a smaller model can read."""
    on_too_long: Literal["truncate", "error", "chunk_mean"] = "truncate"
    """"truncate" cuts and warns, "error" raises, "chunk_mean" takes the mean of the parts."""
    on_empty: Literal["error", "embed"] = "error"
    """What to do with empty and blank texts."""
    base_url: str | None = None
    """An OpenAI-compatible server that computes instead of this process, such as
    "http://localhost:8000/v1"; several with commas. `model` is then the name it is served under,
    `revision` and `lora` what to record of its weights, `dtype` and `quantization` of it."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions is not None:
            check_range("dimensions", self.dimensions, MIN_DIMENSIONS, 1_000_000)
        check_instruction(self.instruction)
        check_range("max_length", self.max_length, 4, 1_000_000)
        check_choice("on_too_long", self.on_too_long, ("truncate", "error", "chunk_mean"))
        check_choice("on_empty", self.on_empty, ("error", "embed"))
        if self.base_url is not None:
            self._check_remote(self.base_url)
        if self.api_key_env is not None:
            check_type("api_key_env", self.api_key_env, str)
            if self.base_url is None:
                raise ConfigError(
                    f"api_key_env is {self.api_key_env!r} without a base_url; give both or neither"
                )

    def _check_remote(self, base_url: str) -> None:
        check_type("base_url", base_url, str)
        split_urls(base_url)
        for name in MACHINE_OPTIONS:
            if getattr(self, name) != getattr(EncoderConfig, name):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which the server at base_url decides; "
                    "leave it out"
                )
        if self.on_too_long == "chunk_mean":
            raise ConfigError(
                'on_too_long is "chunk_mean", which takes the model\'s tokenizer; with a base_url '
                'choose "truncate" (what the server does) or "error"'
            )

    @classmethod
    def from_options(
        cls, model: str = DEFAULT_MODEL, **options: Unpack[EncoderOptions]
    ) -> EncoderConfig:
        """Return the config of these options; an unknown name is a ConfigError."""
        check_options(options, cls.option_names())
        return cls(model=model, **options)

    @property
    def is_remote(self) -> bool:
        """Whether a server computes, so that `model` is its name for it and no folder of ours."""
        return self.base_url is not None

    def portable(self) -> dict[str, Any]:
        """Return what to keep beside an index: every option but those of this one machine."""
        return {name: value for name, value in asdict(self).items() if name not in MACHINE_OPTIONS}


class RerankerOptions(TypedDict, total=False):
    """RerankerConfig's options but for the model, for doors that take them by name."""

    revision: str | None
    lora: str | None
    device: str
    dtype: DType
    quantization: Quantization | None
    attention: AttentionBackend
    max_batch_tokens: int | Literal["auto"]
    max_queue_tokens: int | None
    local_files_only: bool
    instruction: str
    max_length: int
    on_too_long: Literal["truncate", "error"]


@dataclass(frozen=True, kw_only=True)
class RerankerConfig(EngineConfig):
    """Every option of a reranker. Frozen, hashable, JSON-able; checked when made (ConfigError)."""

    model: str = DEFAULT_RERANKER
    """A hub id or a folder with a Qwen3-Reranker."""
    instruction: str = WEB_SEARCH
    """What makes a document right for a query; one English sentence works best."""
    max_length: int = MAX_LENGTH
    """Tokens of frame, instruction, query and document together; only the document is cut. The
    default is lowered to what a smaller model can read."""
    on_too_long: Literal["truncate", "error"] = "truncate"
    """"truncate" cuts the document and warns, "error" raises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instruction(self.instruction, has_bare_form=False)
        check_range("max_length", self.max_length, 64, 1_000_000)
        check_choice("on_too_long", self.on_too_long, ("truncate", "error"))

    @classmethod
    def from_options(
        cls, model: str = DEFAULT_RERANKER, **options: Unpack[RerankerOptions]
    ) -> RerankerConfig:
        """Return the config of these options; an unknown name is a ConfigError."""
        check_options(options, cls.option_names())
        return cls(model=model, **options)


def check_type(option: str, value: object, kind: type) -> None:
    """Raise ConfigError unless `value` is a `kind`."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{option} is {value!r}, a {type(value).__name__}; give {kind.__name__}")


def check_choice(option: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{option} is {value!r}; choose one of {', '.join(map(repr, allowed))}")


def check_range(option: str, value: object, lowest: int, highest: int) -> None:
    """Raise ConfigError unless `value` is an int from `lowest` to `highest`."""
    check_type(option, value, int)
    if isinstance(value, int) and not lowest <= value <= highest:
        raise ConfigError(f"{option} is {value}; choose a number from {lowest} to {highest}")


def check_options(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise ConfigError for a name that is no option, with the nearest one that is."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown option {name!r}{hint} (options: {', '.join(known)})")


def split_urls(base_url: str | Sequence[str]) -> tuple[str, ...]:
    """Return the URLs, without final slashes. Raises ConfigError for what is none, or has a key."""
    given = base_url.split(",") if isinstance(base_url, str) else base_url
    urls = tuple(url.strip().rstrip("/") for url in given)
    for url in urls or ("",):
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(
                f"base_url is {url!r}; give the address of an OpenAI-compatible server, such as "
                "http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"base_url for {parts.hostname} holds a name, a password or a query; indexes keep "
                "base_url: put the key into an environment variable and name it in api_key_env"
            )
    return urls


def fit_length(config: EncoderConfig | RerankerConfig, max_positions: int) -> int:
    """Return how many tokens of a text are read at most by a model with so many positions.

    Raises ConfigError when more are asked for; the default is lowered.
    """
    if config.max_length > max_positions and config.max_length != MAX_LENGTH:
        raise ConfigError(
            f"max_length is {config.max_length}, {config.model} reads {max_positions} tokens at "
            "most; lower max_length"
        )
    return min(config.max_length, max_positions)


def fit_dimensions(config: EncoderConfig, width: int) -> int:
    """Return the width of the vectors of a model so wide. Raises ConfigError."""
    if config.dimensions is not None and config.dimensions > width:
        raise ConfigError(
            f"dimensions is {config.dimensions}, {config.model} makes {width}; choose a number "
            f"from {MIN_DIMENSIONS} to {width}, or None"
        )
    return config.dimensions or width


def check_instruction(instruction: object, *, has_bare_form: bool = True) -> None:
    """Raise ConfigError unless `instruction` is a sentence.

    `has_bare_form` says that texts without one have a method of their own.
    """
    check_type("instruction", instruction, str)
    if not str(instruction).strip():
        bare = ", or encode texts without any instruction by encode_documents"
        raise ConfigError(
            "instruction is blank, a form the model was not trained on; give a sentence"
            + (bare if has_bare_form else "")
        )
