"""The tables of an experiment as text and pictures, this run's numbers beside the published ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradfeat.comparison.plots import COLOURS, INK, save_figure
from gradfeat.files.terminal import printable
from gradfeat.reproduce.cells import Result

MISSING = "–"
PUBLISHED = "published"  # header of a column of the paper's numbers
SOURCE = f"{PUBLISHED}: Mu, Liang & Li, ICLR 2020"


@dataclass(frozen=True)
class Metric:
    """What a table shows of a cell's result.

    Attributes:
        key: In the result; a share, 0 to 1.
        title: For people.
        unit: For an axis.
    """

    key: str
    title: str
    unit: str


ACCURACY = Metric("accuracy", "accuracy in %", "accuracy %")
MAP = (
    Metric("map_11point", "mean average precision in %, 11-point as of VOC 2007", "mAP % (11-point)"),
    Metric("map_area", "mean average precision in %, area under the curve", "mAP % (area)"),
)


@dataclass(frozen=True)
class Number:
    """A share in percent over seeds: an accuracy, or a mean average precision.

    Attributes:
        values: One for each seed that is there.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, results: Mapping[str, Result], names: Sequence[str], metric: str = "accuracy") -> Number:
        """Read the cells of some names, one for each seed; those that are not there are left out."""
        return cls(tuple(100 * float(results[name][metric]) for name in names if name in results))

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.values:
            return MISSING
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: Above it.
        header: Names of the columns.
        rows: As many cells each.
        remarks: Below it.
        more: The same by another metric, for its own place in the text: (metric, rows).
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    remarks: list[str]
    more: tuple[str, list[list[str]]] | None = None

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [f"# {self.title}", "", *self._grid(self.rows)]
        if self.more is not None:
            lines += ["", f"{self.more[0]}:", "", *self._grid(self.more[1])]
        return "\n".join([*lines, "", *(f"- {remark}" for remark in self.remarks)]) + "\n"

    def _grid(self, rows: list[list[str]]) -> list[str]:
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return lines + ["| " + " | ".join(row) + " |" for row in rows]

    def narrow(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows for a terminal: without the published numbers, and "trained" for "pre-trained"."""
        kept = [i for i, name in enumerate(self.header) if name != PUBLISHED]
        return [self.header[i] for i in kept], [[row[i].removeprefix("pre-") for i in kept] for row in self.rows]


@dataclass(frozen=True)
class Panel:
    """One axis of a picture: named rows with points, and lines across all of them.

    Attributes:
        title: Above it.
        rows: Names, from the top.
        points: Of each mode one number for each row.
        lines: Numbers that hold for all rows, by mode.
        published: As `points`, the paper's.
        label: What the rows are.
        apart: Distance of the points of one row, in rows.
        unit: Of the points.
    """

    title: str
    rows: Sequence[str]
    points: Mapping[str, Sequence[Number]]
    lines: Mapping[str, Number]
    published: Mapping[str, Sequence[float | None]]
    label: str = ""
    apart: float = 0.0
    unit: str = ACCURACY.unit


def draw(path: Path, panels: Sequence[Panel], title: str, *, shared: bool) -> Path:
    """Draw panels side by side: filled points for this run, hollow ones for the paper.

    Args:
        path: The PNG to write.
        panels: With the same rows where `shared`.
        title: Above the picture.
        shared: Whether the panels have one list of rows, written once.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state
    from matplotlib.lines import Line2D

    height = 1.9 + 0.42 * max(len(panel.rows) for panel in panels)
    figure = Figure(figsize=(3.2 * len(panels) + 3.0, height), layout="constrained")
    axes_of = figure.subplots(1, len(panels), sharex=shared, sharey=shared, squeeze=False)[0]
    modes: dict[str, None] = {}
    for axes, panel in zip(axes_of, panels, strict=True):
        places = range(len(panel.rows))
        for i, (mode, numbers) in enumerate(panel.points.items()):
            modes[mode] = None
            shift = panel.apart * (i - (len(panel.points) - 1) / 2)
            colour = COLOURS.get(mode, INK)
            at = [place + shift for place in places]
            for place, number in zip(at, numbers, strict=True):
                if number.mean is not None:
                    axes.errorbar([number.mean], [place], xerr=number.spread, fmt="o", color=colour, ms=5, capsize=3)
            theirs = [(v, p) for v, p in zip(panel.published.get(mode, ()), at, strict=False) if v is not None]
            if theirs:
                axes.plot(*zip(*theirs, strict=True), "o", mfc="none", mec=colour, ms=6, alpha=0.55)
        for mode, number in panel.lines.items():
            if number.mean is not None:
                modes[mode] = None
                axes.axvline(number.mean, color=COLOURS.get(mode, INK), ls="--", lw=1.2)
        axes.set_title(printable(panel.title), fontsize=10, parse_math=False)
        axes.set_yticks(list(places), list(map(printable, panel.rows)), fontsize=8, parse_math=False)
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
        axes.set_xlabel(panel.unit)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes_of[0].set_ylabel(panels[0].label)
    lined = {mode for panel in panels for mode in panel.lines}
    handles: list[Any] = [
        Line2D([], [], color=COLOURS.get(mode, INK), label=mode, **_mark(mode in lined)) for mode in modes
    ]
    if any(value is not None for panel in panels for values in panel.published.values() for value in values):
        handles.append(Line2D([], [], color=INK, marker="o", mfc="none", ls="", alpha=0.55, label=PUBLISHED))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    return save_figure(figure, path)


def _mark(line: bool) -> dict[str, Any]:
    return {"ls": "--"} if line else {"marker": "o", "ls": ""}
