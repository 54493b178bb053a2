"""Pictures of a report: which classes are taken for which, the labels' average precision, values beside targets."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.comparison.plots import INK, save_figure
from gradfeat.metrics.report import ClassReport, LabelReport, Report, ValueReport

COUNTED, NAMED = 24, 60
"""Classes up to which the cells of a picture have their counts, and its axes the names."""

_PAIRS = 20  # of the most frequent errors beside a matrix that has no counts
_LABELS = 60  # in a picture; of more the worst
_PANELS = 4  # of outputs
_LONG = 24  # characters of a name


def report_chart(path: str | Path, report: Report, title: str = "") -> Path:
    """Draw a report as a PNG: a confusion matrix, the labels' average precision, or predictions beside targets.

    Args:
        path: The PNG to write.
        report: From `gradfeat.metrics.report.report_of`.
        title: Above the picture.

    Returns:
        The path.
    """
    if isinstance(report, ClassReport):
        figure = _confusion(report)
    elif isinstance(report, LabelReport):
        figure = _labels(report)
    else:
        figure = _values(report)
    if title:
        width = int(13 * figure.get_size_inches()[0])
        figure.suptitle(textwrap.fill(title, max(width, 20)), fontsize=9, parse_math=False)
    return save_figure(figure, path)


def _confusion(report: ClassReport) -> Any:
    from matplotlib.colors import PowerNorm

    c = len(report.names)
    share = np.nan_to_num(report.confusion / np.maximum(report.support, 1)[:, None])
    cell = 0.42 if c <= COUNTED else 0.2 if c <= NAMED else 0.0
    side = max(cell * c, 2.2) if cell else 7.0
    listed = report.confused(_PAIRS) if c > COUNTED else []
    figure = _figure(side + 2.6 + (3.4 if listed else 0), side + (2.4 if c <= NAMED else 1.4))
    axes, text = figure.subplots(1, 2, width_ratios=(side + 1.5, 3)) if listed else (figure.subplots(), None)
    norm = PowerNorm(0.5 if c > COUNTED else 1.0, vmin=0, vmax=1)  # among many classes each error is rare
    image = axes.imshow(share, cmap="Blues", norm=norm, aspect="equal", interpolation="nearest")
    if c <= NAMED:
        names = [_short(name) for name in report.names]
        size = 8 if c <= COUNTED else 6
        axes.set_xticks(range(c), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(c), names, fontsize=size, parse_math=False)
    if c <= COUNTED:
        for (i, j), count in np.ndenumerate(report.confusion):
            if count:
                colour = "white" if share[i, j] > 0.55 else INK
                axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted class" if c <= NAMED else f"predicted class, in the order of the {c:,} names")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    if text is not None:
        lines = [f"{_short(i)} taken for {_short(j)}: {count:,}" for i, j, count in listed]
        text.axis("off")
        text.text(0, 1, "\n".join(["Most frequent errors", "", *lines]), va="top", fontsize=7, parse_math=False)
    return figure


def _labels(report: LabelReport) -> Any:
    values = np.nan_to_num(report.average_precision, nan=-1.0)
    order = np.argsort(values, kind="stable")[:_LABELS]
    order = order[values[order] >= 0]
    figure = _figure(6, 1.4 + 0.22 * max(len(order), 1))
    axes = figure.subplots()
    axes.plot(values[order], range(len(order)), "o", ms=4, color="#1f5fa8", label="average precision")
    axes.plot(report.precision[order], range(len(order)), "|", ms=8, color="#d9772b", label="precision")
    axes.plot(report.recall[order], range(len(order)), "x", ms=4, color="#7b8794", label="recall")
    names = [f"{_short(report.names[i])} ({report.support[i]:,})" for i in order]
    axes.set_yticks(range(len(order)), names, fontsize=7, parse_math=False)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("precision and recall where the probability is above one half")
    axes.legend(fontsize=7, loc="best")
    return figure


def _values(report: ValueReport) -> Any:
    k = min(report.truth.shape[1], _PANELS)
    figure = _figure(3.8 * k + 0.4, 3.8)
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, k))):
        y, v = report.truth[:, i], report.values[:, i]
        both = [min(y.min(), v.min()), max(y.max(), v.max())]
        axes.plot(both, both, color=INK, lw=0.8)
        axes.plot(y, v, "o", ms=3, alpha=max(0.1, min(0.8, 200 / len(y))), color="#1f5fa8", mec="none")
        axes.set_xlabel("target" if report.truth.shape[1] == 1 else f"target {i + 1}")
        axes.set_ylabel("prediction" if not i else "")
        axes.grid(alpha=0.3)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _short(name: str) -> str:
    """Return a name without what cannot be drawn, cut where it is long."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}…"
