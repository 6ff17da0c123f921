"""Settings compared on your own labelled queries, and the cheapest that is as good as the best."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..contract import EmbeddingContract
from ..core.config import MIN_DIMENSIONS, EncoderConfig, check_choice
from ..encoder import Qwen3Encoder
from ..errors import ConfigError
from ..remote import RemoteEncoder
from ..search import Reranker
from .data import RetrievalSet
from .lab import Lab, Scores, Setting, Trial, make_settings
from .metrics import measure_ranking
from .significance import compare_paired

logger = logging.getLogger(__name__)

TOLERANCE = 0.02  # of the metric: a loss that is worth what it saves
LEVEL = 0.05
CAPTION = (
    "{} settings on {} queries of {}, with 95% bootstrap intervals. loss: beside the best setting, "
    "paired by query; interval and p. *: the cheapest (by rerank depth, then bytes of a document's "
    f"vectors, weights, keywords) whose loss is not significant (p from {LEVEL} on, uncorrected: a "
    f"correction would let more pass) and whose interval excludes a loss over {TOLERANCE}. "
    "Exploratory: the best was picked on these queries, and fewer than 50 tell little; confirm it "
    "on others. ms: one query here, encoded, searched exactly, reranked."
)
ELSEWHERE = {  # where an option goes that is none of EncoderConfig's
    "chunk_tokens": "index --max-tokens {}",
    "storage": 'a collection on a Qdrant server, storage="{}"',
    "dense_weight": "Qwen3Retriever(…, keywords=KeywordIndex(…), dense_weight={})",
    "rerank_depth": "Qwen3Retriever(…, reranker=…, candidates={})",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every setting of a grid, best first, and the one to take with its config and contract."""

    dataset: str
    metric: str
    trials: tuple[Trial, ...]
    recommended: Trial
    config: EncoderConfig
    contract: EmbeddingContract

    @property
    def caption(self) -> str:
        """How the table was made, and by which rule one setting is recommended."""
        return CAPTION.format(len(self.trials), len(self.trials[0].results.ids), self.dataset)

    @property
    def instructions(self) -> dict[str, str]:
        """The instructions by their names in table and chart, from i1 on."""
        texts = sorted({one.setting.instruction for one in self.trials}, key=ascii)
        return {f"i{n}": text for n, text in enumerate(texts, 1)}

    def describe(self, setting: Setting) -> dict[str, str]:
        """Return a setting's dimensions and what else differs among the settings."""
        names = {text: name for name, text in self.instructions.items()}
        return {
            name: names.get(value, str(value).lower())
            for name, value in asdict(setting).items()
            if name == "dimensions" or len({getattr(t.setting, name) for t in self.trials}) > 1
        }

    def snippet(self) -> str:
        """Return Python to paste: the recommended config and its contract."""
        given, default = self.config.portable(), EncoderConfig().portable()
        options = {k: v for k, v in given.items() if k == "model" or v != default[k]}
        values = {one: getattr(self.recommended.setting, one.name) for one in fields(Setting)}
        notes = {one.name: value for one, value in values.items() if value != one.default}
        lines = [f"# {ELSEWHERE[k].format(v)}" for k, v in notes.items() if k in ELSEWHERE]
        imports = "from qwen3_embedding_integrations import EmbeddingContract, EncoderConfig\n"
        config = _call("config = EncoderConfig", options)
        contract = _call("contract = EmbeddingContract", asdict(self.contract))
        return "\n".join([imports, config, contract, *lines])

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, JSON-able, a setting in each row; values with intervals, p at last."""
        return [
            {
                "": "*" * (one is self.recommended),
                **self.describe(one.setting),
                self.metric: one.metrics[self.metric],
                "loss": one.loss,
                "bytes/document": round(one.bytes_per_document),
                "ms": round(one.latency_ms, 2),
            }
            for one in self.trials
        ]


def compare(
    config: EncoderConfig | str | None,
    dataset: RetrievalSet,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    reranker: Reranker | None = None,
    metric: str = "ndcg@10",
) -> Comparison:
    """Return every combination of a grid's values measured on a dataset, and the one to take.

    `grid` maps options of Setting to values, which stand for the config's. Another quantization or
    chunk size encodes the documents anew, another instruction the queries; the rest comes from the
    same vectors and scores. Documents stand where their best piece does. Raises ConfigError for
    values that cannot be.
    """
    config, grid = EncoderConfig.of(config), dict(grid or {})
    check_choice("metric", metric, tuple(measure_ranking(dataset, {}).values))
    if any(grid.get("rerank_depth", ())) and reranker is None:
        raise ConfigError(f"rerank_depth is {grid['rerank_depth']}; give a reranker")
    if config.is_remote and any(given := grid.get("quantization", ())):
        raise ConfigError(f"quantization is {given}, which the server decides; leave it out")
    make_encoder = RemoteEncoder.of if config.is_remote else Qwen3Encoder
    make_settings({"dimensions": [MIN_DIMENSIONS]} | grid, 1_000_000)  # before a model is loaded
    trials: list[Trial] = []
    contracts: dict[str | None, EmbeddingContract] = {}
    scores: Scores = {}
    for quantization in dict.fromkeys(grid.get("quantization", (None,))):
        options: dict[str, Any] = {"quantization": quantization, "dimensions": None}
        with make_encoder(replace(config, **options)) as encoder:
            lab = Lab(encoder, dataset, reranker, scores)
            for setting in make_settings(grid, encoder.dimensions):
                if setting.quantization == quantization:
                    trials.append(lab.measure(setting))
                    logger.info("measured: %s", setting)
            contracts[quantization] = encoder.contract
    trials.sort(key=lambda one: (-one.metrics[metric].value, *_cost(one)))
    losses = [compare_paired(one.results, trials[0].results)[metric] for one in trials]
    trials = [one._replace(loss=loss) for one, loss in zip(trials, losses, strict=True)]
    chosen = recommend(trials)
    one = chosen.setting
    own: dict[str, Any] = {"dimensions": one.dimensions, "instruction": one.instruction}
    contract = replace(contracts[one.quantization], **own)
    config = replace(config, quantization=one.quantization, **own)
    return Comparison(dataset.name, metric, tuple(trials), chosen, config, contract)


def recommend(trials: Sequence[Trial]) -> Trial:
    """Return of trials, best first, the cheapest whose loss is not significant and surely small.

    Of equally cheap ones the best. The best of all always qualifies.
    """
    as_good = [one for one in trials if one.loss.p_value >= LEVEL and one.loss.low >= -TOLERANCE]
    return min(as_good, key=_cost)


def _cost(trial: Trial) -> tuple[float, ...]:
    # Without the latency, which is another at every run.
    one, num_bytes = trial.setting, trial.bytes_per_document
    return one.rerank_depth, num_bytes, one.quantization is None, one.dense_weight is not None


def _call(name: str, arguments: dict[str, Any]) -> str:
    return "\n".join([f"{name}(", *(f"    {k}={v!r}," for k, v in arguments.items()), ")"])
