"""The chart of a GPU result: tokens a second of each mix, and one query's latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu_workload import MIXES
from qwen3_embedding_integrations.bench.chart import OUR_COLOUR, PEER_COLOUR, TEXT_COLOUR

PANEL_INCHES = 2.6


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart as `path`.svg and `path`.png; an engine that failed has no bar."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [(f"{mix.name}, tokens/s", mix.name, "tokens_per_s") for mix in MIXES]
    panels.append(("one query, ms at p50", "one query", "p50_ms"))
    # A fixed salt and no date: the same result gives the same file.
    with rc_context({"svg.hashsalt": "qwen3", "font.size": 8, "text.color": TEXT_COLOUR}):
        figure = Figure(figsize=(3.1 * len(panels), PANEL_INCHES), layout="constrained")
        figure.suptitle(
            f"Qwen3-Embedding {result['model']['shape']}, random weights, "
            f"{result['card'] or result['processor']}, {result['date']}",
            fontsize=9,
        )
        for axes, (title, section, value) in zip(
            figure.subplots(1, len(panels)), panels, strict=True
        ):
            rates = {
                name: measured[section][value]
                for name, measured in result["engines"].items()
                if value in measured.get(section, {})
            }
            ranked = sorted(rates, key=lambda name: rates[name], reverse=value == "p50_ms")
            colours = [OUR_COLOUR if name.startswith("ours") else PEER_COLOUR for name in ranked]
            axes.barh(ranked, [rates[name] for name in ranked], color=colours, height=0.7)
            for row, name in enumerate(ranked):
                text = f"{rates[name]:,.0f}" if rates[name] >= 100 else f"{rates[name]:.2f}"
                axes.annotate(text, (0, row), xytext=(4, -2), textcoords="offset points")
            axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=160)
