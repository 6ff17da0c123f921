"""The results of benchmarks/search.py as Markdown."""

from __future__ import annotations

from typing import Any


def report(result: dict[str, Any]) -> str:
    """Return the tables."""
    weights, references = result["weights"], result["references"]
    parts = [
        "# Search, measured",
        f"{result['date']}, {result['processor']}, model `{result['model']}`:"
        f" `{result['command']}`."
        " All questions of a set that were not used to choose the weights; nDCG@10 in points, by"
        " pytrec_eval.",
        f"Weight of the vectors, chosen on the development questions: {weights['scores']} of"
        f" scores, {weights['ranks']} of ranks (reciprocal rank fusion, k = 60). The rule: the"
        " weight whose worst development set gains most over the better of dense and BM25.",
        _table(
            [
                "set",
                "questions",
                "texts",
                "dense",
                "BM25",
                "**fused**",
                "gain",
                "RRF",
                "RRF, equal",
            ],
            [_set_row(name, one) for name, one in result["test"].items()]
            + [_set_row("zh question, en text", result["zh_to_en"])],
        ),
        "Gain: over the better of dense and BM25. RRF with equal weights is what stores offer.",
        "## By weight of the vectors, development questions",
        _table(
            ["set", "fusion", *(f"{0.1 * n:.1f}" for n in range(11))],
            [
                [name, fusion, *(f"{value:.1f}" for value in values[::2])]
                for name, one in result["development"].items()
                for fusion, values in one["fused"].items()
            ],
        ),
        f"## References, {references['references']} articles of {references['articles']:,}",
        "How many of them come first.",
        _table(
            ["notation", "retriever", "BM25 alone", "vectors alone"],
            [
                [f"`{name}`", str(one["retriever"]), str(one["bm25"]), str(one["dense"])]
                for name, one in references["first"].items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _set_row(name: str, one: dict[str, Any]) -> list[str]:
    gain = one["fused"] - max(one["dense"], one["bm25"])
    values = [f"{one[key]:.1f}" if key in one else "" for key in ("dense", "bm25")]
    rest = [f"{one[key]:.1f}" if key in one else "" for key in ("rrf", "rrf_equal")]
    numbers = [str(one["questions"]), f"{one.get('documents', one['questions']):,}"]
    return [name, *numbers, *values, f"**{one['fused']:.1f}**", f"{gain:+.2f}", *rest]


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
