"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

INK = "#222222"
COLOURS = {"activation": "#9aa5b1", "gradient": "#7fb3d5", "full": "#1f77b4", "finetune": "#e08e45"}


def bar_chart(
    path: str | Path,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    errors: Sequence[float] | None = None,
    title: str = "",
) -> Path:
    """Draw one bar for each model, with its value above it.

    Args:
        path: The PNG to write.
        names: A name for each bar.
        values: A height for each bar.
        label: What the height is.
        errors: Half the length of each error bar.
        title: Above the picture.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    figure = Figure(figsize=(1.3 * len(names) + 1.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = [COLOURS.get(name, "#1f77b4") for name in names]
    bars = axes.bar(list(names), list(values), color=colours, width=0.65, yerr=errors, ecolor=INK, capsize=3)
    low, high = min(values), max(values)
    room = max(high - low, abs(high) * 0.02, 1e-9)
    margin = max(errors) if errors is not None else 0.0
    bottom = low - room - margin
    axes.set_ylim(bottom if low < 0 else max(0.0, bottom), high + 0.35 * room + 2 * margin)
    for bar, value, error in zip(bars, values, errors or [0.0] * len(values), strict=True):
        axes.annotate(
            f"{value:.2f}",
            (bar.get_x() + bar.get_width() / 2, value + error),
            (0, 3),
            textcoords="offset points",
            ha="center",
            color=INK,
        )
    axes.set_ylabel(label)
    if title:
        axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(path), dpi=150)
    return Path(path)
