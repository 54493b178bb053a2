"""Pictures of results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

INK = "#222222"
COLOURS = {"activation": "#7b8794", "gradient": "#4fa3d1", "full": "#1f5fa8", "finetune": "#d9772b"}


def dot_chart(
    path: str | Path,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    errors: Sequence[float] | None = None,
    title: str = "",
) -> Path:
    """Draw one point for each model, with its value beside it.

    Points rather than bars: a scale that does not begin at zero shows small differences, and makes the lengths of bars
    mean nothing.

    Args:
        path: The PNG to write.
        names: A name for each point.
        values: Their heights.
        label: What the height is.
        errors: Half the length of each error bar.
        title: Above the picture.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    width = 1.2 * len(names) + 2.4
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = COLOURS.get(name, INK)
        axes.errorbar([i], [value], None if errors is None else [errors[i]], fmt="o", color=colour, ms=8, capsize=4)
        axes.annotate(f"{value:.2f}", (i, value), (9, 0), textcoords="offset points", va="center", color=INK)
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.5, len(names) - 0.2)
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylabel(label)
    if title:
        axes.set_title(textwrap.fill(title, int(11 * width)), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(path), dpi=150)
    return Path(path)
