"""export_model and the verb export: a folder with graph, tokenizer, contract and its parity."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import typer

from ..core.checkpoint import locate_model, read_quantization
from ..core.config import EncoderConfig, check_choice
from ..core.exported import GRAPHS, NOTE
from ..demo import load_texts
from ..encoder import Qwen3Encoder
from ..errors import ConfigError
from ..options import Options, say, takes

Format = StrEnum("Format", ["onnx", "openvino"])
Precision = StrEnum("Precision", ["fp32", "fp16", "int8", "int4"])
SIDE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json")
NUM_ARTICLES = 12  # of the demo that parity is measured on; one text more is made of them all
MAX_CHARS = 2000  # of that one


class ExportedModel(NamedTuple):
    """What `export_model` wrote, and its vectors beside the core's, of texts alone and together."""

    folder: Path
    num_bytes: int  # of the graph and its weights
    kept: dict[str, float]  # projections left in floats, and the error that int8 would have made
    num_texts: int
    max_tokens: int  # of the longest text
    max_difference: float  # of any component
    mean_cosine: float
    min_cosine: float


def export_model(
    model: str,
    out: str | Path,
    *,
    format: Literal["onnx", "openvino"] = "onnx",
    precision: Literal["fp32", "fp16", "int8", "int4"] = "fp32",
    revision: str | None = None,
    local_files_only: bool = False,
) -> ExportedModel:
    """Write `model` as a graph to the new folder `out`, with its tokenizer and contract.

    `Qwen3Encoder(out)` then gives its vectors on a CPU without torch, under the same contract. For
    other programs: the graph takes input_ids (B, S), padded on the right with any id, and
    lengths (B,), int64, and gives vectors (B, H), float32. Only the products of int8 and int4 are
    not computed in float32. Raises ConfigError when `out` exists, ModelLoadError when `model`
    cannot be read, MissingDependencyError without the extra (`onnx`, `openvino`).
    """
    from ..core.quantization import new_folder
    from .graph import WRITERS

    check_choice("format", format, tuple(Format))
    check_choice("precision", precision, tuple(Precision))
    out = Path(out).expanduser()
    config = EncoderConfig(
        model=model, revision=revision, local_files_only=local_files_only,
        dtype="float32", device="cpu", backend="torch",
    )  # fmt: skip
    folder = locate_model(config)
    if read_quantization(folder) is not None:
        raise ConfigError(f"{model} has int8 weights already; give the model they were made of")
    with new_folder(out, like=folder, files=SIDE_FILES) as partial:
        kept = WRITERS[format](folder, partial / GRAPHS[format], precision)
        num_bytes = sum(path.stat().st_size for path in partial.glob("model.*"))
        with Qwen3Encoder(config) as core:
            contract = replace(
                core.contract,
                dtype="float16" if precision == "fp16" else "float32",
                quantization=f"{format}-{precision}" if precision.startswith("int") else None,
            )
            note = {"format": format, "precision": precision, "contract": contract.to_dict()}
            _write(partial / NOTE, note)
            with Qwen3Encoder(str(partial)) as exported:
                made = ExportedModel(out, num_bytes, kept, *_measure(core, exported))
        _write(partial / NOTE, note | made._asdict() | {"folder": out.name})
    return made


def _measure(core: Qwen3Encoder, exported: Qwen3Encoder) -> tuple[int, int, float, float, float]:
    articles = [text.document for text in load_texts()]
    articles = articles[:: len(articles) // NUM_ARTICLES]
    texts = ["x", *articles, "\n".join(articles)[:MAX_CHARS]]
    expected = core.encode_documents(texts)
    alone = np.concatenate([exported.encode_documents([text]) for text in texts])
    found = np.stack([alone, exported.encode_documents(texts)])  # (2, N, H)
    cosines = (found * expected).sum(2)
    longest, worst = max(map(core.count_tokens, texts)), float(np.abs(found - expected).max())
    return len(texts), longest, worst, float(cosines.mean()), float(cosines.min())


def _write(path: Path, note: dict[str, Any]) -> None:
    path.write_text(json.dumps(note, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@takes("revision")
def export(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or 'tiny'.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    options: Options,
    format: Annotated[Format, typer.Option(help="The runtime it is for.")] = Format.onnx,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.fp32,
) -> None:
    """Write a model as an ONNX or OpenVINO graph, which runs without torch; say how exact it is."""
    options |= {"format": str(format), "precision": str(precision)}
    made = export_model(model, out, **options)
    say(f"{made.folder}: {made.num_bytes / 1e6:,.0f} MB; use it: --model {made.folder}")
    for name, error in made.kept.items():
        say(f"kept in floats: {name} (int8 would move its layer by {error:.1%})")
    say(
        f"beside the core in float32, {made.num_texts} texts of up to {made.max_tokens} tokens, "
        f"alone and in one call: greatest difference {made.max_difference:.1e}, "
        f"cosine {made.mean_cosine:.6f}, least {made.min_cosine:.6f}"
    )
