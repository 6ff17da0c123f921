"""The chart of a result: tokens a second and the latency of a query, every engine and mode."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MissingDependencyError
from .options import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUR_COLOUR, PEER_COLOUR, TEXT_COLOUR = "#1f6feb", "#b1bac4", "#24292f"
ROW_INCHES = 0.32


class Panel(NamedTuple):
    """One half of the chart."""

    title: str
    key: str  # of an engine's result: a median with minimum and maximum
    higher_is_better: bool


PANELS = (
    Panel("Documents, tokens/s (more is better)", "documents_tokens_per_s", True),
    Panel("One query, ms (less is better)", "query_latency_ms", False),
)


def check_matplotlib() -> None:
    """Raise MissingDependencyError unless a chart can be drawn."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError("matplotlib", extra="bench", reason=error) from error


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart as `path`.svg and `path`.png."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

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
            _draw_panel(axes, panel, engines)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=160)


def _draw_panel(axes: Axes, panel: Panel, engines: list[dict[str, Any]]) -> None:
    # Bars are drawn from below: the best comes last.
    ranked = sorted(engines, key=lambda one: one[panel.key]["median"])
    ranked = ranked if panel.higher_is_better else ranked[::-1]
    names = [f"{one['engine']} {one['mode']}" for one in ranked]
    spreads = [one[panel.key] for one in ranked]
    medians = [spread["median"] for spread in spreads]
    below = [spread["median"] - spread["min"] for spread in spreads]
    above = [spread["max"] - spread["median"] for spread in spreads]
    colours = [OUR_COLOUR if one["engine"] == OURS else PEER_COLOUR for one in ranked]
    line = {"ecolor": TEXT_COLOUR, "elinewidth": 0.8, "capsize": 2}
    axes.barh(names, medians, xerr=[below, above], color=colours, height=0.7, error_kw=line)
    for row, spread in enumerate(spreads):
        text = f"{spread['median']:,.0f}" if spread["median"] >= 10 else f"{spread['median']:.1f}"
        axes.annotate(
            text, (spread["max"], row), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
