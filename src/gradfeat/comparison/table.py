"""The table of the four models: their rows, and all that belongs below it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradfeat.comparison.approximation import Approximation
from gradfeat.comparison.verdict import Verdict
from gradfeat.errors import ConfigurationError
from gradfeat.files.writing import write_text
from gradfeat.linearization.theta2 import layers_of

TITLES = {
    "accuracy": "accuracy %",
    "log_loss": "log loss",
    "map_area": "mAP % area",
    "map_11point": "mAP % 11-point",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "macro_f1": "macro-F1 %",
    "balanced_accuracy": "balanced accuracy %",
}
PERCENT = ("accuracy", "map_area", "map_11point", "macro_f1", "balanced_accuracy")


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        mode: Which of the four.
        metrics: On the test data, by name.
        train_loss: Mean loss on the training data.
        seconds: Time to train this model, on top of what all share; a search for a learning rate is part of it.
        parameters: Number of trained parameters.
        note: What was chosen on held-out training data, or went wrong.
    """

    mode: str
    metrics: dict[str, float]
    train_loss: float
    seconds: float
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The four models side by side.

    Attributes:
        rows: A row for each model.
        theta2: Names of θ₂.
        shared_seconds: Time of what all models share: a look at depths, activations and probe.
        n_train: Number of training samples.
        n_test: Number of test samples.
        notes: What the user should know.
        estimators: The fitted estimator of each mode.
        approximation: How well `full` approximates the real network, on the test data; None without `full`.
        interrupted: Whether Ctrl-C ended it before all was done.
        verdict: Which model is best on the test data, by how much, and what that means; None without a model.
    """

    rows: list[Row]
    theta2: list[str]
    shared_seconds: dict[str, float]
    n_train: int
    n_test: int
    notes: list[str] = field(default_factory=list)
    estimators: dict[str, Any] = field(default_factory=dict, repr=False)
    approximation: Approximation | None = None
    interrupted: bool = False
    verdict: Verdict | None = None

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics, the main one first."""
        return list(self.rows[0].metrics) if self.rows else []

    def best(self) -> str:
        """Return the mode with the best main metric on the test data: to read the table by, not to choose by.

        Raises:
            ConfigurationError: No model was finished.
        """
        main = self._main_metric()
        return max(self.rows, key=lambda row: row.metrics[main]).mode

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the numbers of the table as text: its header, and a list for each row."""
        metrics = [TITLES[name] for name in self.metric_names]
        header = ["model", *metrics, "train loss", "parameters", "time"]
        body = [
            [
                row.mode,
                *(
                    f"{100 * row.metrics[name]:.2f}" if name in PERCENT else f"{row.metrics[name]:.4f}"
                    for name in self.metric_names
                ),
                f"{row.train_loss:.4f}",
                f"{row.parameters:,}",
                f"{row.seconds:.1f} s",
            ]
            for row in self.rows
        ]
        return header, body

    def remarks(self) -> list[str]:
        """Return what belongs below the table: what was chosen for each model, θ₂, shared time, notes."""
        shared = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.shared_seconds.items())
        return [
            *(f"{row.mode}: {row.note}" for row in self.rows if row.note),
            *([f"approximation: {self.approximation}"] if self.approximation is not None else []),
            f"θ₂: {layers_of(self.theta2)}",
            f"{self.n_train:,} training and {self.n_test:,} test samples; shared by all models: {shared}",
            *self.notes,
        ]

    def __str__(self) -> str:
        header, body = self.cells()
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python objects, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "theta2": self.theta2,
            "shared_seconds": self.shared_seconds,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "notes": self.notes,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "approximation": None if self.approximation is None else self.approximation.to_dict(),
            "rounds": {
                mode: {
                    "start": rounds.start,
                    "trials": [trial.to_dict() for trial in rounds.trials],
                    "more": rounds.more,
                    "reason": rounds.reason,
                }
                for mode, estimator in self.estimators.items()
                if (rounds := estimator.rounds_) is not None
            },
            "penalties": {
                mode: [tried.to_dict() for tried in estimator.choice_.path]
                for mode, estimator in self.estimators.items()
                if estimator.choice_ is not None
            },
        }

    def plot_more(self, folder: str | Path) -> list[Path]:
        """Draw the penalty path and the rounds of each mode that has them, and the Taylor remainder, as PNGs."""
        from gradfeat.comparison.plots import choice_charts, remainder_chart

        folder = Path(folder)
        written: list[Path] = []
        for mode, estimator in self.estimators.items():
            written += choice_charts(folder, mode, estimator.choice_, estimator.rounds_)
        if self.approximation is not None:
            written.append(remainder_chart(folder / "remainder.png", self.approximation.remainder))
        return written

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Draw the main metric of each model as a PNG; for accuracy with its standard error on the test data.

        Raises:
            ConfigurationError: No model was finished.
        """
        from gradfeat.comparison.plots import dot_chart

        main = self._main_metric()
        factor = 100 if main in PERCENT else 1
        values = [factor * row.metrics[main] for row in self.rows]
        errors = None
        if main == "accuracy":
            errors = [100 * math.sqrt(row.metrics[main] * (1 - row.metrics[main]) / self.n_test) for row in self.rows]
        label = TITLES[main] if errors is None else f"{TITLES[main]} (± standard error)"
        return dot_chart(path, [row.mode for row in self.rows], values, label, errors=errors, title=title)

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON."""
        return write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def _main_metric(self) -> str:
        if not self.rows:
            raise ConfigurationError("the comparison has no finished model")
        return self.metric_names[0]
