"""The chart of a result: tokens a second and the latency of a query, every engine and mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import needs
from .options import OURS

with needs("matplotlib", extra="bench"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUR_COLOUR, PEER_COLOUR, TEXT_COLOUR = "#1f6feb", "#b1bac4", "#24292f"
ROW_INCHES = 0.32


# An engine's result (a median with minimum and maximum), what is said above it, what is better.
PANELS = (
    ("documents_tokens_per_s", "Documents, tokens/s (more is better)", "more"),
    ("query_latency_ms", "One query, ms (less is better)", "less"),
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart as `path`.svg and `path`.png."""
    engines = [one for one in result["engines"] if "failed" not in one]
    height = 1.3 + ROW_INCHES * max(1, len(engines))
    # A fixed salt and no date: the same result gives the same file.
    with rc_context({"svg.hashsalt": "qwen3", "font.size": 9, "text.color": TEXT_COLOUR}):
        figure = Figure(figsize=(10, height), layout="constrained", facecolor="white")
        figure.suptitle(
            f"{result['model']['name']}, {result['processor']}, {result['cores']} cores, "
            f"{result['date']}: medians, lines from the slowest to the fastest",
            fontsize=9,
        )
        for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            _draw_panel(axes, engines, *panel)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=160)


def _draw_panel(
    axes: Axes, engines: list[dict[str, Any]], key: str, title: str, better: str
) -> None:
    # Bars are drawn from below: the best comes last.
    ranked = sorted(engines, key=lambda one: one[key]["median"], reverse=better == "less")
    for row, one in enumerate(ranked):
        median, low, high = (one[key][name] for name in ("median", "min", "max"))
        colour = OUR_COLOUR if one["engine"] == OURS else PEER_COLOUR
        line = {"ecolor": TEXT_COLOUR, "elinewidth": 0.8, "capsize": 2}
        reach = [[median - low], [high - median]]
        axes.barh(row, median, xerr=reach, color=colour, height=0.7, error_kw=line)
        text = f"{median:,.0f}" if median >= 10 else f"{median:.1f}"
        axes.annotate(text, (high, row), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(ranked)), [f"{one['engine']} {one['mode']}" for one in ranked])
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
