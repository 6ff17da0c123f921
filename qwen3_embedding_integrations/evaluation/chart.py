"""The chart of a comparison: quality against the bytes of a document's vectors, and latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import needs
from .compare import Comparison, Trial

with needs("matplotlib", extra="evaluate"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

PANELS = {
    "bytes_per_document": "bytes of a document's vectors",
    "latency_ms": "ms of a query: encoded, searched exactly, reranked",
}
CHOSEN = {"label": "recommended", "marker": "*", "markersize": 14, "color": "black"}


def chart_files(path: Path) -> tuple[Path, Path]:
    """Return where `draw` writes SVG and PNG: either ending may be given; other dots are kept."""
    stem = path.stem if path.suffix in {".svg", ".png"} else path.name
    return path.with_name(f"{stem}.svg"), path.with_name(f"{stem}.png")


def draw(comparison: Comparison, path: Path) -> None:
    """Write `chart_files(path)`; settings that differ in width alone are one line."""
    lines: dict[str, list[Trial]] = {}
    for trial in comparison.trials:
        words = comparison.describe(trial.setting).items()
        alike = [f"{name} {value}" for name, value in words if name != "dimensions"]
        lines.setdefault(", ".join(alike) or "by dimensions", []).append(trial)
    # A fixed salt and no date: the same result gives the same file.
    with rc_context({"svg.hashsalt": "qwen3", "svg.fonttype": "none", "font.size": 9}):
        columns = max(1, 140 // (max(map(len, lines)) + 8))  # of labels, side by side
        height = 4.5 + 0.2 * len(lines) / columns
        figure = Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
            styles: list[dict[str, Any]] = [  # ten colours, then another marker
                {"label": label, "marker": "osD^vPX"[n // 10 % 7]} for n, label in enumerate(lines)
            ]
            groups = [*lines.values(), [comparison.recommended]]
            for trials, style in zip(groups, [*styles, CHOSEN], strict=True):
                points = sorted((getattr(t, key), *t.metrics[comparison.metric]) for t in trials)
                x, y, low, high = zip(*points, strict=True)
                # Latency varies by chance: no line through it.
                linestyle = "solid" if key == "bytes_per_document" else "none"
                (line,) = axes.plot(x, y, linestyle=linestyle, linewidth=1, **style)
                axes.vlines(x, low, high, colors=line.get_color(), alpha=0.3)
            axes.set(xscale="log", xlabel=title)
            axes.xaxis.set_major_formatter(LogFormatter())
            axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        panels[0].set_ylabel(f"{comparison.metric}, 95% interval")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns
        )
        svg, png = chart_files(path)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=160)
