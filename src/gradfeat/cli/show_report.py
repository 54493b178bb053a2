"""A report by classes on the terminal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradfeat.cli.show import note, table
from gradfeat.metrics.report import ClassReport, LabelReport, Report

SHOWN = 30
"""Classes up to which all have a row; of more the worst ones have."""

_WORST = 20
_PAIRS = 5
_TITLES = {"average_precision": "AP %", "precision": "precision %", "recall": "recall %", "f1": "F1 %"}


def show_report(report: Report) -> None:
    """Print a row for each class, or for the worst of many, and the most frequent errors."""
    if not isinstance(report, (ClassReport, LabelReport)):
        return
    what = "class" if isinstance(report, ClassReport) else "label"
    columns = report.columns()
    indices = worst(report) if len(report.names) > SHOWN else list(range(len(report.names)))
    header = [what, *(_TITLES.get(name, name) for name in columns)]
    cells = [[_cell(values[i]) for values in columns.values()] for i in indices]
    widths = [max(map(len, [*column, *name.split()])) for name, *column in zip(header[1:], *cells, strict=True)]
    rows = [[report.names[i], *map(str.rjust, row, widths)] for i, row in zip(indices, cells, strict=True)]
    title = None
    if len(indices) < len(report.names):
        by = "F1" if what == "class" else "average precision"
        title = f"The {len(indices)} of {len(report.names):,} with the least {by}; --json has all"
    table(header, rows, title=title)
    if any("–" in row for row in rows):
        note(False, f"–: no sample has the {what}, or it was never predicted")
    if isinstance(report, ClassReport) and (pairs := report.confused(_PAIRS)):
        note(False, "most frequent errors: " + ", ".join(f"{i} taken for {j} {count}×" for i, j, count in pairs))


def worst(report: ClassReport | LabelReport) -> list[int]:
    """Return the indices of the classes that a model does worst on, the worst first, among those that have samples."""
    score = report.f1 if isinstance(report, ClassReport) else report.average_precision
    order = np.lexsort((-report.support, np.nan_to_num(score, nan=math.inf)))
    return [int(i) for i in order if report.support[i]][:_WORST]


def _cell(value: Any) -> str:
    if isinstance(value, np.integer):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
